/// Runs the built program and keeps what it says on each stream.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace espalier {

struct Result {
  int status = -1;  ///< exit status; 128 + n if signal n ended it
  std::string out, err;
};

class Program : public ::testing::Test {
 protected:
  Program() {
    std::string pattern = (std::filesystem::temp_directory_path() / "espalier-cli-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("no temporary directory");
    folder = pattern;
  }
  ~Program() override { std::filesystem::remove_all(folder); }

  /// A file in `folder`, which is where the program runs.
  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder / name, std::ios::binary) << text;
  }
  std::string read(const std::string& name) {
    std::ifstream file(folder / name, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

  /// `arguments` as in a shell; `before` goes before the program (VARIABLE=x, or a pipe).
  Result run(const std::string& arguments, const std::string& before = "") {
    const std::string command = "cd '" + folder.string() + "' && { env -u ESPALIER_DATA " + before +
                                " '" ESPALIER_PROGRAM "' " + arguments + "; } >stdout.txt 2>stderr.txt </dev/null";
    return ended(std::system(command.c_str()));
  }
  /// A shell line in which $ESPALIER is the program.
  Result shell(const std::string& line) {
    write("line.sh", line);
    const std::string command = "cd '" + folder.string() +
                                "' && ESPALIER='" ESPALIER_PROGRAM "' bash line.sh >stdout.txt 2>stderr.txt </dev/null";
    return ended(std::system(command.c_str()));
  }

  std::filesystem::path folder;

 private:
  Result ended(int status) {
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read("stdout.txt"), read("stderr.txt")};
  }
};

}  // namespace espalier
