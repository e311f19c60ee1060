#include "pages.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

#ifdef _WIN32
#include <malloc.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace torch_helion {
namespace {

constexpr std::size_t kGiB = std::size_t{1} << 30;
constexpr std::size_t kHugePageMin = std::size_t{4} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t read_number(const char* path) {
  unsigned long long value = 0;
  if (std::FILE* file = std::fopen(path, "r")) {
    if (std::fscanf(file, "%llu", &value) != 1) {
      value = 0; // "max"
    }
    std::fclose(file);
  }
  return static_cast<std::size_t>(value);
}

} // namespace

std::size_t memory_size() {
  std::size_t total = 16 * kGiB;
#if !defined(_WIN32)
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) {
    total = static_cast<std::size_t>(pages) * static_cast<std::size_t>(page);
  }
#endif
  for (const char* path :
       {"/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    if (const std::size_t limit = read_number(path)) {
      total = std::min(total, limit);
    }
  }
  return total;
}

#ifdef _WIN32
void* map_pages(std::size_t size) {
  return _aligned_malloc(size, 4096);
}

void unmap_pages(void* data, std::size_t) {
  _aligned_free(data);
}
#else
static void* map_anonymous(std::size_t size) {
  void* data = mmap(
      nullptr,
      size,
      PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS,
      -1,
      0);
  return data == MAP_FAILED ? nullptr : data;
}

void unmap_pages(void* data, std::size_t size) {
  munmap(data, size);
}

void* map_pages(std::size_t size) {
  if (size < kHugePageMin) {
    return map_anonymous(size);
  }
  auto* raw = static_cast<char*>(map_anonymous(size + kHugePage));
  if (raw == nullptr) {
    return nullptr;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::size_t head = (kHugePage - address % kHugePage) % kHugePage;
  if (head != 0) {
    munmap(raw, head);
  }
  if (head != kHugePage) {
    munmap(raw + head + size, kHugePage - head);
  }
#ifdef MADV_HUGEPAGE
  madvise(raw + head, size, MADV_HUGEPAGE); // advice: may be refused
#endif
  return raw + head;
}
#endif

} // namespace torch_helion
