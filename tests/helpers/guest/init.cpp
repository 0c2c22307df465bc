// The first process of an emulated machine. Runs the lines of /commands, one program after another, and sends to the emulator,
// byte by byte through its port for debugging, of each: a line with the status, and the numbers of bytes that it printed and
// left in /result; then those bytes. Switches the machine off.
#include <fcntl.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr unsigned short OUTPUT = 0xe9, OFF = 0x8900;  // of Bochs

void send(const std::string& bytes, unsigned short port = OUTPUT) {
  for (char byte : bytes) outb(static_cast<unsigned char>(byte), port);
}

std::string content(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int run(const std::string& line) {
  std::istringstream stream(line);
  const std::vector<std::string> words{std::istream_iterator<std::string>(stream), {}};
  const pid_t child = fork();
  if (!child) {
    dup2(open("/printed", O_WRONLY | O_CREAT | O_TRUNC, 0600), 1), dup2(1, 2);
    std::vector<char*> arguments;
    for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

}  // namespace

int main() {
  mkdir("/proc", 0755);
  mount("none", "/proc", "proc", 0, "");
  if (ioperm(OUTPUT, 1, 1) || ioperm(OFF, 1, 1)) return 1;
  const int module = open("/tiles.ko", O_RDONLY);
  if (module >= 0 && syscall(SYS_finit_module, module, "", 0)) send("the kernel does not load tiles.ko\n");
  send("begin\n");
  std::ifstream commands("/commands");
  for (std::string line; std::getline(commands, line);) {
    unlink("/result");
    const int status = run(line);
    const std::string printed = content("/printed"), result = content("/result");
    send(std::to_string(status) + " " + std::to_string(printed.size()) + " " + std::to_string(result.size()) + "\n");
    send(printed), send(result);
  }
  send("Shutdown", OFF);
  for (;;) pause();
}
