// Calls one function of the kernels' library, as ctypes does where there is a Python:
//
//   arm_driver LIBRARY FUNCTION FILE ADDRESS ARGUMENT...
//
// The file is the function's memory: it lies at ADDRESS, and holds what the function has written afterwards. Arguments
// are integers or addresses; what the function returns is printed, and means nothing if it returns nothing.

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

// On ARM the first eight integers and addresses, of whatever width, are in a register each.
using Function = int (*)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

int main(int count, char** words) {
  if (count < 5) return 2;
  void* library = dlopen(words[1], RTLD_NOW);
  const auto function = library ? reinterpret_cast<Function>(dlsym(library, words[2])) : nullptr;
  if (!function) return fprintf(stderr, "%s\n", dlerror()), 1;
  const int file = open(words[3], O_RDWR);
  struct stat status;
  if (file < 0 || fstat(file, &status)) return perror(words[3]), 1;
  void* address = reinterpret_cast<void*>(strtoull(words[4], nullptr, 0));
  if (mmap(address, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) != address)
    return fprintf(stderr, "there is something else at %s\n", words[4]), 1;
  uint64_t arguments[5] = {};
  for (int i = 0; i < 5 && i + 5 < count; ++i) arguments[i] = strtoull(words[i + 5], nullptr, 0);
  printf("%d\n", function(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4]));
}
