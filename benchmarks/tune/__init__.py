"""`fastconv tune`: which algorithm each convolution wants on this machine, measured and stored for later processes.

measure: samples of every driver of every layer. choices: what they mean. store: the file. cli: the command.
"""
