# cmake "-DFILES=a.toml;b.toml" -DFUNCTION=embedded_presets -DOUTPUT=x.cpp -P embed.cmake
set(code "// Made by presets/embed.cmake.\n#include \"train/embedded_presets.h\"\n\nnamespace espalier::train {\n\n")
string(APPEND code "const std::vector<std::pair<std::string, std::string>>& ${FUNCTION}() {\n"
                   "  static const std::vector<std::pair<std::string, std::string>> kFiles = {\n")
list(SORT FILES)
foreach(file IN LISTS FILES)
  get_filename_component(name "${file}" NAME_WE)
  file(READ "${file}" text)
  string(APPEND code "      {\"${name}\", R\"preset(${text})preset\"},\n")
endforeach()
string(APPEND code "  };\n  return kFiles;\n}\n\n}  // namespace espalier::train\n")
file(WRITE "${OUTPUT}" "${code}")
