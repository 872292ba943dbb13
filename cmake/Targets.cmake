# Flags and helpers shared by all targets.

add_library(espalier_flags INTERFACE)
target_compile_options(espalier_flags INTERFACE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -fPIC)
# -fPIC for programs too: the precompiled header is shared by libraries and programs and must see the same flags.
if(ESPALIER_WERROR)
  target_compile_options(espalier_flags INTERFACE -Werror)
endif()
if(ESPALIER_SANITIZE)
  target_compile_options(espalier_flags INTERFACE -fsanitize=${ESPALIER_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(espalier_flags INTERFACE -fsanitize=${ESPALIER_SANITIZE})
endif()

# LibTorch as a SYSTEM include: its warnings are not ours.
add_library(espalier_torch INTERFACE)
target_include_directories(espalier_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_link_libraries(espalier_torch INTERFACE ${TORCH_LIBRARIES} OpenMP::OpenMP_CXX)

# torch/torch.h costs 12 s a unit to parse; one precompiled header brings that to 3 s. Every unit that uses torch shares it.
file(WRITE ${CMAKE_BINARY_DIR}/torch_pch.cpp "// holds the precompiled header\n")
add_library(espalier_torch_pch OBJECT ${CMAKE_BINARY_DIR}/torch_pch.cpp)
target_link_libraries(espalier_torch_pch PRIVATE espalier_torch espalier_flags fmt::fmt)
target_precompile_headers(espalier_torch_pch PRIVATE <torch/torch.h> <fmt/format.h>)

# espalier_library(NAME [TORCH] LINK …): the library of folder src/NAME, headers in include/espalier/NAME.
function(espalier_library name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "TORCH" "" "LINK")
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cpp)
  if(NOT sources)
    add_library(espalier_${name} INTERFACE)
    target_link_libraries(espalier_${name} INTERFACE ${ARG_LINK})
    return()
  endif()
  add_library(espalier_${name} STATIC ${sources})
  target_include_directories(espalier_${name} PUBLIC ${PROJECT_SOURCE_DIR}/include PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(espalier_${name} PUBLIC ${ARG_LINK} PRIVATE espalier_flags)
  if(ARG_TORCH)
    target_link_libraries(espalier_${name} PUBLIC espalier_torch)
    target_precompile_headers(espalier_${name} REUSE_FROM espalier_torch_pch)
  endif()
endfunction()
