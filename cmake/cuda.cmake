# The CUDA backend: a second extension module, fastconv/_cuda, from src/cuda and src/cuda_bindings*.cpp. FASTCONV_CUDA=AUTO builds it where a
# CUDA compiler is found, ON insists on one, OFF leaves it out. The runtime is linked statically: only the driver is needed later.
set(FASTCONV_CUDA_OLDEST 12.0)

function(fastconv_no_cuda reason)
  if(FASTCONV_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FASTCONV_CUDA=ON: ${reason}")
  endif()
  message(STATUS "fastconv: without CUDA: ${reason}")
endfunction()

if(FASTCONV_CUDA STREQUAL "OFF")
  message(STATUS "fastconv: without CUDA: FASTCONV_CUDA=OFF")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  fastconv_no_cuda("no working CUDA compiler (nvcc) was found; CUDACXX or CMAKE_CUDA_COMPILER may name one")
  return()
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF)  # said below, file by file
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS FASTCONV_CUDA_OLDEST)
  fastconv_no_cuda("${CMAKE_CUDA_COMPILER} is version ${CMAKE_CUDA_COMPILER_VERSION}, ${FASTCONV_CUDA_OLDEST} or later is needed")
  return()
endif()
find_package(CUDAToolkit REQUIRED)

# Native code for the architectures that kernels are written for, and PTX for later ones. A development build may ask for fewer.
set(FASTCONV_CUDA_ARCHITECTURES "80;89;90a" CACHE STRING "Native code of the CUDA module: a list of 80, 89, 90a")
option(FASTCONV_CUDA_PTX "Keep PTX of compute_90 in the CUDA module, for devices later than sm_90" ON)
set(native_code "")
foreach(arch IN LISTS FASTCONV_CUDA_ARCHITECTURES)
  list(APPEND native_code "-gencode=arch=compute_${arch},code=sm_${arch}")
endforeach()
if(FASTCONV_CUDA_PTX)
  list(APPEND native_code "-gencode=arch=compute_90,code=compute_90")
endif()

file(GLOB_RECURSE cuda_kernels CONFIGURE_DEPENDS src/cuda/*.cu)
file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS src/cuda/*.cpp)
file(GLOB cuda_bindings CONFIGURE_DEPENDS src/cuda_bindings*.cpp)
# A suffix says what a kernel is compiled for, as on the CPU: wgmma and TMA exist in sm_90a alone.
foreach(source IN LISTS cuda_kernels)
  if(source MATCHES "_sm90\\.cu$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-gencode=arch=compute_90a,code=sm_90a")
  else()
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${native_code}")
  endif()
endforeach()

pybind11_add_module(_cuda NO_EXTRAS ${cuda_bindings} ${cuda_sources} ${cuda_kernels} src/common/problem.cpp
                    src/common/validate.cpp src/common/lock.cpp src/common/log.cpp src/common/environment.cpp)
target_include_directories(_cuda PRIVATE src)
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
set(cuda_warnings -Wall -Wextra)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND cuda_warnings -Wno-restrict)
endif()
string(REPLACE ";" "," cuda_host_warnings "${cuda_warnings}")
# Contraction stays on in kernels: their sums are fused multiply-adds by design; the host code computes no results.
target_compile_options(
  _cuda
  PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${cuda_warnings};-fno-math-errno;-ffp-contract=off>"
          "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;-Xcompiler=${cuda_host_warnings};-Xptxas=-warn-spills>")
if(FASTCONV_WERROR)
  target_compile_options(_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Werror>"
                                       "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>")
endif()
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.4)
  target_compile_options(_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Xfatbin=-compress-all>")
endif()
# The static runtime's symbols stay inside, so that another library's copy in the process is not mistaken for it.
if(NOT APPLE)
  target_link_options(_cuda PRIVATE "-Wl,--exclude-libs,ALL")
endif()
install(TARGETS _cuda LIBRARY DESTINATION fastconv)
message(STATUS "fastconv: with CUDA ${CMAKE_CUDA_COMPILER_VERSION}, sm_${FASTCONV_CUDA_ARCHITECTURES}")
