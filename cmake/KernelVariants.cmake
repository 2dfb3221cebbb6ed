# sp_add_kernel_variants(SOURCE [BF16] [OPTIONS FLAG...]): compiles one C file into softprompt_objects once for each rung of the kernel
# ladder, with these flags behind all others.
#
# The file sees SP_KERNEL_VARIANT (generic, avx2 or avx512) and makes its public names from it, so that all builds live in one
# library and the processor decides at run time. Only this file gets the flags: everything else stays baseline code, and a
# machine without AVX never runs into an instruction that it lacks. Other processors than x86-64 get `generic` alone.
set(SP_KERNEL_FLAGS_generic "")
set(SP_KERNEL_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(SP_KERNEL_FLAGS_avx512 ${SP_KERNEL_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
set(SP_KERNEL_FLAGS_avx512bf16 ${SP_KERNEL_FLAGS_avx512} -mavx512bf16)

set(SP_KERNEL_VARIANTS generic)
set(SP_KERNEL_VARIANTS_BF16)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND SP_KERNEL_VARIANTS avx2 avx512)
  list(APPEND SP_KERNEL_VARIANTS_BF16 avx512bf16)
endif()

# A source file can have one set of flags in one target, hence a one-line includer for each variant.
function(sp_add_kernel_variants source)
  cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} NORMALIZE OUTPUT_VARIABLE path)
  cmake_path(GET path STEM stem)
  cmake_parse_arguments(PARSE_ARGV 1 of "BF16" "" "OPTIONS")
  set(variants ${SP_KERNEL_VARIANTS})
  if(of_BF16)
    list(APPEND variants ${SP_KERNEL_VARIANTS_BF16})
  endif()
  foreach(variant IN LISTS variants)
    set(includer ${CMAKE_CURRENT_BINARY_DIR}/${stem}_${variant}.c)
    file(CONFIGURE OUTPUT ${includer} CONTENT "#include \"@path@\"\n" @ONLY)
    target_sources(softprompt_objects PRIVATE ${includer})
    set_source_files_properties(${includer} TARGET_DIRECTORY softprompt_objects PROPERTIES
      COMPILE_OPTIONS "${SP_KERNEL_FLAGS_${variant}};${of_OPTIONS}" COMPILE_DEFINITIONS SP_KERNEL_VARIANT=${variant})
  endforeach()
endfunction()
