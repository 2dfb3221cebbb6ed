# FindGgml: Ggml::base, the part of ggml that knows tensor types and how to expand them. Static, so that an installed
# libsoftprompt.so needs nothing from a cache.
set(prefix ${SP_CACHE}/ggml-${SP_GGML_VERSION})
find_path(Ggml_INCLUDE_DIR ggml.h HINTS ${prefix}/include)
find_library(Ggml_BASE_LIBRARY ggml-base HINTS ${prefix}/lib)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Ggml REQUIRED_VARS Ggml_BASE_LIBRARY Ggml_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "no ggml in ${prefix}: run scripts/setup, which builds it there")

if(Ggml_FOUND AND NOT TARGET Ggml::base)
  find_package(Threads REQUIRED)
  add_library(Ggml::base UNKNOWN IMPORTED)
  set_target_properties(Ggml::base PROPERTIES IMPORTED_LOCATION ${Ggml_BASE_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${Ggml_INCLUDE_DIR}
    INTERFACE_LINK_LIBRARIES "stdc++;OpenMP::OpenMP_C;Threads::Threads;${CMAKE_DL_LIBS};m") # partly C++, partly OpenMP
endif()
