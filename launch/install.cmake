# What `cmake --install` puts where:
#   bin/stagecoach
#   share/stagecoach/configs, launch/mpirun, launch/slurm, README.md, LICENSE    as here, so that commands read the same from there
set(STAGECOACH_SHARE share/stagecoach)
set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME stagecoach)

# The program finds the libraries that it was linked with where modules or Spack have them.
set_target_properties(stagecoach PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS stagecoach RUNTIME DESTINATION bin)
install(FILES ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${STAGECOACH_SHARE} COMPONENT data)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs DESTINATION ${STAGECOACH_SHARE} COMPONENT data
        PATTERN CMakeLists.txt EXCLUDE PATTERN "*.py" EXCLUDE PATTERN __pycache__ EXCLUDE)
install(PROGRAMS mpirun DESTINATION ${STAGECOACH_SHARE}/launch COMPONENT data)
install(FILES slurm/requeue.sh DESTINATION ${STAGECOACH_SHARE}/launch/slurm COMPONENT data)
# Batch files name the program from Stagecoach's folder.
foreach(name cpu gpu array preemptible)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS slurm/${name}.sbatch)
  file(READ slurm/${name}.sbatch text)
  string(REPLACE "/build/release/launch/stagecoach" "/../../bin/stagecoach" text "${text}")
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/installed/${name}.sbatch "${text}")
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/installed/${name}.sbatch DESTINATION ${STAGECOACH_SHARE}/launch/slurm
          COMPONENT data)
endforeach()
