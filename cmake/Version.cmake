# espalier_version: the version and the commit, read anew by every build and recompiled only when they change.
# Run by itself (cmake -P) with SOURCE_DIR, VERSION and OUTPUT it writes the source file.
if(CMAKE_SCRIPT_MODE_FILE)
  execute_process(COMMAND git -C ${SOURCE_DIR} describe --always --dirty --abbrev=12 --match "v[0-9]*"
                  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
  if(NOT status EQUAL 0 OR NOT EXISTS ${SOURCE_DIR}/.git)
    set(commit "")  # no git, an unpacked archive, or an archive inside somebody else's repository
  endif()
  file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT [[
#include "espalier/core/version.h"
namespace espalier {
const char* version() { return "@VERSION@"; }
const char* commit() { return "@commit@"; }
}  // namespace espalier
]])
  return()
endif()

set(version_source ${CMAKE_BINARY_DIR}/generated/version.cpp)
add_custom_target(espalier_commit BYPRODUCTS ${version_source}
                  COMMAND ${CMAKE_COMMAND} -DSOURCE_DIR=${PROJECT_SOURCE_DIR} -DVERSION=${PROJECT_VERSION}
                          -DOUTPUT=${version_source} -P ${CMAKE_CURRENT_LIST_FILE} VERBATIM)
add_library(espalier_version STATIC ${version_source})
add_dependencies(espalier_version espalier_commit)
target_include_directories(espalier_version PUBLIC ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(espalier_version PRIVATE espalier_flags)
