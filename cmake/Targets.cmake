# Flags and helpers shared by all targets.

# With CMAKE_UNITY_BUILD (presets release and ci) files of a library are compiled this many at a time: loading the
# precompiled header and instantiating its templates again costs 3 s a unit.
set(CMAKE_UNITY_BUILD_BATCH_SIZE 5)

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

# Where time is spent in kernels, ours or LibTorch's, and not in the text itself (files, settings, commands, tests), a unit
# compiles in about half the time with -O1.
add_library(espalier_light INTERFACE)
target_compile_options(espalier_light INTERFACE $<$<CONFIG:Release>:-O1>)

# torch/torch.h costs 12 s a unit to parse; a precompiled header brings that to 3 s. Every unit that uses torch shares one:
# a header is compiled for one level of optimisation, and the light one has what files and commands include besides.
function(espalier_torch_pch name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "" "LINK;HEADERS")
  file(WRITE ${CMAKE_BINARY_DIR}/${name}.cpp "// holds the precompiled header\n")
  add_library(${name} OBJECT ${CMAKE_BINARY_DIR}/${name}.cpp)
  target_link_libraries(${name} PRIVATE espalier_torch espalier_flags fmt::fmt ${ARG_LINK})
  target_precompile_headers(${name} PRIVATE ${ARG_HEADERS})
endfunction()
espalier_torch_pch(espalier_torch_pch HEADERS <torch/torch.h> <fmt/format.h>)
espalier_torch_pch(espalier_light_pch LINK espalier_light nlohmann_json::nlohmann_json CLI11::CLI11
                   HEADERS <torch/torch.h> <fmt/format.h> <nlohmann/json.hpp> <CLI/CLI.hpp>)

# espalier_use_torch(TARGET [LIGHT]): with the precompiled header that fits.
function(espalier_use_torch target)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "LIGHT" "" "")
  if(ARG_LIGHT)
    target_link_libraries(${target} PRIVATE espalier_light)
    target_precompile_headers(${target} REUSE_FROM espalier_light_pch)
  else()
    target_precompile_headers(${target} REUSE_FROM espalier_torch_pch)
  endif()
endfunction()

# espalier_library(NAME [TORCH [LIGHT]] LINK …): the library of folder src/NAME, headers in include/espalier/NAME.
function(espalier_library name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "TORCH;LIGHT" "" "LINK")
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
    if(ARG_LIGHT)
      espalier_use_torch(espalier_${name} LIGHT)
    else()
      espalier_use_torch(espalier_${name})
    endif()
  endif()
endfunction()
