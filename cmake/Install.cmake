# Installation: the library, its one header, and what pkg-config and find_package(softprompt) read. The program is installed by src/cli.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/softprompt)

install(TARGETS softprompt EXPORT softpromptTargets LIBRARY PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

install(EXPORT softpromptTargets NAMESPACE softprompt:: DESTINATION ${package_dir})
configure_package_config_file(cmake/softpromptConfig.cmake.in softpromptConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(softpromptConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/softpromptConfig.cmake ${PROJECT_BINARY_DIR}/softpromptConfigVersion.cmake
  DESTINATION ${package_dir})

file(RELATIVE_PATH PC_TO_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(cmake/softprompt.pc.in softprompt.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/softprompt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
