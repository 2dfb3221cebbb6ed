# What the library stands on. Debian packages, but for ggml, which scripts/setup builds into a cache outside the tree.
set(SP_GGML_VERSION 0.0.45) # of the source release; scripts/setup builds the same one

if(DEFINED ENV{SOFTPROMPT_CACHE})
  set(default_cache $ENV{SOFTPROMPT_CACHE})
elseif(DEFINED ENV{XDG_CACHE_HOME})
  set(default_cache $ENV{XDG_CACHE_HOME}/softprompt)
else()
  set(default_cache $ENV{HOME}/.cache/softprompt)
endif()
set(SP_CACHE ${default_cache} CACHE PATH "where scripts/setup keeps what it built and fetched")

find_package(OpenMP REQUIRED COMPONENTS C)
find_package(PkgConfig REQUIRED)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(NETTLE REQUIRED IMPORTED_TARGET nettle)     # SHA-256
pkg_check_modules(MUPARSER REQUIRED IMPORTED_TARGET muparser) # formulas that a user gives a lab
find_library(CSV_LIBRARY csv REQUIRED) # libcsv has neither a pkg-config file nor a CMake package
find_package(Ggml REQUIRED)
