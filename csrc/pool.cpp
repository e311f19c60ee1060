#include "pool.h"

#include "errors.h"
#include "pages.h"
#include "python_tensor.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace torch_helion {
namespace {

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::size_t kGiB = 1024 * kMiB;
constexpr std::size_t kDefaultThreshold = 256 * kKiB;
constexpr std::size_t kMinThreshold = 4 * kKiB; // a page
constexpr std::size_t kMaxDefaultLimit = 8 * kGiB;
// Small requests never cut blocks that were made for such large ones, for which
// new ones would be mapped later. Simulated on the allocations of a training
// step, MiB at the peak of what is live, with one kind of blocks, with two:
// GPT2 455, 676, 568; BERT 623, 745, 655 (free blocks never cut: 610 and 1045).
constexpr std::size_t kLarge = 64 * kMiB;

std::atomic<bool> debug_fill_on{false};

// ---------------------------------------------------------------- pool

// Sizes are rounded up to eight steps per doubling: at most 12.5 % is wasted.
struct SizeClass {
  std::size_t index;
  std::size_t size;
};

// The largest class that is not above `size`.
std::size_t class_below(std::size_t size) {
  const int exponent = std::bit_width(size) - 1;
  const std::size_t eighth = (size >> (exponent - 3)) & 7;
  return static_cast<std::size_t>(exponent) * 8 + eighth;
}

SizeClass size_class(std::size_t bytes) {
  bytes = std::max(bytes, kMinThreshold);
  // Whole pages, also below 32 KiB, where an eighth is less than a page.
  const int exponent = std::bit_width(bytes) - 1;
  const std::size_t step = std::max<std::size_t>(
      std::size_t{1} << (exponent - 3), kMinThreshold);
  const std::size_t size = (bytes + step - 1) / step * step;
  return {class_below(size), size};
}

// Whole pages: each may be given back to the system alone.
struct Block {
  char* data = nullptr;
  std::size_t size = 0;
  std::size_t class_index = 0; // class_below(size)
  bool large = false; // made for a request of kLarge, or cut from such a block
  // Links of a free block: in its size class, and in the order of use.
  Block* class_prev = nullptr;
  Block* class_next = nullptr;
  Block* used_prev = nullptr;
  Block* used_next = nullptr;
};

struct Stats {
  std::size_t hits = 0;
  std::size_t misses = 0;
  std::size_t released_blocks = 0;
  std::size_t live_blocks = 0;
  std::size_t live_bytes = 0;
  std::size_t cached_blocks = 0;
  std::size_t cached_bytes = 0;
};

class Pool {
 public:
  // Never destroyed: tensors may outlive every other static object.
  static Pool& get() {
    static Pool* pool = new Pool();
    return *pool;
  }

  void* acquire(std::size_t bytes);
  // Returns the size of the block.
  std::size_t release(void* data) noexcept;
  void release_cached() noexcept;
  void set_limit(std::size_t limit) noexcept;

  std::size_t threshold() const {
    return threshold_.load(std::memory_order_relaxed);
  }
  void set_threshold(std::size_t bytes) {
    threshold_.store(std::max(bytes, kMinThreshold));
  }
  Stats stats(std::size_t* limit) {
    std::lock_guard<std::mutex> lock(mutex_);
    *limit = limit_;
    return stats_;
  }

 private:
  Pool();

  // A free block of the class, or of the next one if that wastes little.
  Block* take_cached(std::size_t bytes, std::size_t class_index);
  // The same from what is free in other sizes: neighbours are joined, and the
  // first part of the smallest that is large enough is taken.
  Block* carve(std::size_t bytes, const SizeClass& wanted);
  void join_neighbours();
  void link(Block* block) noexcept;
  void unlink(Block* block) noexcept;
  // The chain (by class_next) of the least recently used blocks whose release
  // brings the cached bytes down to the limit; to be unmapped without the lock.
  Block* shrink_to(std::size_t limit) noexcept;
  void unmap_chain(Block* chain) noexcept;

  std::mutex mutex_;
  std::size_t limit_;
  std::atomic<std::size_t> threshold_{kDefaultThreshold};
  Stats stats_;
  std::array<std::array<Block*, 64 * 8>, 2> classes_{}; // by `large`
  Block* newest_ = nullptr;
  Block* oldest_ = nullptr;
  std::unordered_map<void*, Block*> live_;
};

Pool::Pool() : limit_(std::min(memory_size() / 4, kMaxDefaultLimit)) {
#ifndef _WIN32
  // A child must not inherit the lock of a thread that it does not have.
  pthread_atfork(
      [] { Pool::get().mutex_.lock(); },
      [] { Pool::get().mutex_.unlock(); },
      [] { Pool::get().mutex_.unlock(); });
#endif
}

void Pool::link(Block* block) noexcept {
  Block*& head = classes_[block->large][block->class_index];
  block->class_prev = nullptr;
  block->class_next = head;
  if (head != nullptr) {
    head->class_prev = block;
  }
  head = block;
  block->used_prev = nullptr;
  block->used_next = newest_;
  (newest_ != nullptr ? newest_->used_prev : oldest_) = block;
  newest_ = block;
  ++stats_.cached_blocks;
  stats_.cached_bytes += block->size;
}

void Pool::unlink(Block* block) noexcept {
  (block->class_prev != nullptr ? block->class_prev->class_next
                                : classes_[block->large][block->class_index]) =
      block->class_next;
  if (block->class_next != nullptr) {
    block->class_next->class_prev = block->class_prev;
  }
  (block->used_prev != nullptr ? block->used_prev->used_next : newest_) =
      block->used_next;
  (block->used_next != nullptr ? block->used_next->used_prev : oldest_) =
      block->used_prev;
  --stats_.cached_blocks;
  stats_.cached_bytes -= block->size;
}

Block* Pool::take_cached(std::size_t bytes, std::size_t class_index) {
  // As good as one of the very size while no more than an eighth is wasted.
  const auto& classes = classes_[bytes >= kLarge];
  const std::size_t end = std::min(class_index + 2, classes.size());
  for (std::size_t index = class_index; index < end; ++index) {
    Block* block = classes[index];
    if (block != nullptr && block->size - bytes <= bytes / 8) {
      unlink(block);
      return block;
    }
  }
  return nullptr;
}

void Pool::join_neighbours() {
  std::vector<Block*> blocks;
  blocks.reserve(stats_.cached_blocks);
  for (Block* block = newest_; block != nullptr; block = block->used_next) {
    blocks.push_back(block);
  }
  std::sort(blocks.begin(), blocks.end(), [](const Block* a, const Block* b) {
    return a->data < b->data;
  });
  for (std::size_t i = 0; i < blocks.size();) {
    Block* first = blocks[i];
    std::size_t size = first->size;
    std::size_t end = i + 1;
    for (; end < blocks.size() && blocks[end]->large == first->large &&
         blocks[end]->data == first->data + size;
         ++end) {
      size += blocks[end]->size;
    }
    if (end > i + 1) {
      for (std::size_t j = i; j < end; ++j) {
        unlink(blocks[j]);
      }
      for (std::size_t j = i + 1; j < end; ++j) {
        delete blocks[j];
      }
      first->size = size;
      first->class_index = class_below(size);
      link(first);
    }
    i = end;
  }
}

Block* Pool::carve(std::size_t bytes, const SizeClass& wanted) {
  auto rest = std::make_unique<Block>();
  join_neighbours();
  const auto& classes = classes_[bytes >= kLarge];
  for (std::size_t i = wanted.index; i < classes.size(); ++i) {
    Block* block = classes[i];
    if (block == nullptr) {
      continue;
    }
    unlink(block);
    if (block->size > wanted.size) {
      rest->data = block->data + wanted.size;
      rest->size = block->size - wanted.size;
      rest->class_index = class_below(rest->size);
      rest->large = block->large;
      block->size = wanted.size;
      block->class_index = wanted.index;
      link(rest.release());
    }
    return block;
  }
  return nullptr;
}

Block* Pool::shrink_to(std::size_t limit) noexcept {
  Block* chain = nullptr;
  while (stats_.cached_bytes > limit) {
    Block* block = oldest_;
    unlink(block);
    ++stats_.released_blocks;
    block->class_next = chain;
    chain = block;
  }
  return chain;
}

void Pool::unmap_chain(Block* chain) noexcept {
  while (chain != nullptr) {
    Block* next = chain->class_next;
    unmap_pages(chain->data, chain->size);
    delete chain;
    chain = next;
  }
}

void* Pool::acquire(std::size_t bytes) {
  TORCH_CHECK(
      bytes <= (std::size_t{1} << 62),
      "pool: can't allocate memory: you tried to allocate ",
      bytes,
      " bytes");
  const SizeClass wanted = size_class(bytes);
  Block* block = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    block = take_cached(bytes, wanted.index);
    if (kPagesUnmapApart && block == nullptr &&
        stats_.cached_bytes >= wanted.size) {
      block = carve(bytes, wanted);
    }
    if (block != nullptr) {
      try {
        live_.emplace(block->data, block);
      } catch (...) {
        link(block);
        throw;
      }
      ++stats_.hits;
      ++stats_.live_blocks;
      stats_.live_bytes += block->size;
      return block->data;
    }
  }
  void* data = map_pages(wanted.size);
  if (data == nullptr) {
    release_cached();
    data = map_pages(wanted.size);
  }
  TORCH_CHECK(
      data != nullptr,
      "pool: can't allocate memory: you tried to allocate ",
      bytes,
      " bytes");
  try {
    auto fresh = std::make_unique<Block>();
    fresh->data = static_cast<char*>(data);
    fresh->size = wanted.size;
    fresh->class_index = wanted.index;
    fresh->large = bytes >= kLarge;
    std::lock_guard<std::mutex> lock(mutex_);
    live_.emplace(data, fresh.get());
    fresh.release();
    ++stats_.misses;
    ++stats_.live_blocks;
    stats_.live_bytes += wanted.size;
  } catch (...) {
    unmap_pages(data, wanted.size);
    throw;
  }
  return data;
}

std::size_t Pool::release(void* data) noexcept {
  std::size_t size = 0;
  Block* chain = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_.find(data);
    if (found == live_.end()) {
      return 0; // not ours: leaking it is the lesser evil
    }
    Block* block = found->second;
    size = block->size;
    live_.erase(found);
    --stats_.live_blocks;
    stats_.live_bytes -= block->size;
    if (block->size > limit_) {
      ++stats_.released_blocks;
      block->class_next = nullptr;
      chain = block;
    } else {
      link(block);
      chain = shrink_to(limit_);
    }
  }
  unmap_chain(chain);
  return size;
}

void Pool::release_cached() noexcept {
  Block* chain = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    chain = shrink_to(0);
  }
  unmap_chain(chain);
}

void Pool::set_limit(std::size_t limit) noexcept {
  Block* chain = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = limit;
    chain = shrink_to(limit);
  }
  unmap_chain(chain);
}

// ---------------------------------------------------------------- small

// Below the threshold each thread keeps a few free blocks of each size: an
// aligned malloc() and its free() cost more than all the rest of a tensor. A
// block has one line in front of it that tells its size class.

constexpr std::size_t kLine = 64;
constexpr std::size_t kMinSmallExponent = 6; // of the smallest size, kLine
constexpr std::size_t kMaxSmall = std::size_t{1} << 20;
constexpr std::size_t kSmallClasses = (20 - kMinSmallExponent) * 8 + 1;
constexpr std::size_t kMaxKeptPerThread = 4 * kMiB;
constexpr std::size_t kMaxKeptPerClass = 512 * kKiB;
constexpr uint32_t kMaxKeptBlocks = 64; // of one class

struct SmallHeader {
  SmallHeader* next;
  std::size_t class_index;
  std::size_t size; // of the data
};
static_assert(sizeof(SmallHeader) <= kLine);

// Nothing here has a destructor, so that access needs no guard.
struct SmallCache {
  SmallHeader* free[kSmallClasses];
  uint32_t count[kSmallClasses];
  std::size_t kept;
  bool closed; // the thread is ending
};
thread_local constinit SmallCache small_cache{};

void release_small_cache(SmallCache& cache) noexcept {
  for (std::size_t i = 0; i < kSmallClasses; ++i) {
    while (SmallHeader* block = cache.free[i]) {
      cache.free[i] = block->next;
      c10::free_cpu(block);
    }
    cache.count[i] = 0;
  }
  cache.kept = 0;
}

struct SmallCacheCloser {
  bool open = true;
  ~SmallCacheCloser() {
    small_cache.closed = true;
    release_small_cache(small_cache);
  }
};
thread_local SmallCacheCloser small_cache_closer;

SizeClass small_class(std::size_t bytes) {
  bytes = std::max(bytes, kLine);
  const int exponent = std::bit_width(bytes) - 1;
  const std::size_t step =
      std::max(std::size_t{1} << (exponent - 3), kLine);
  const std::size_t size = (bytes + step - 1) / step * step;
  const int rounded = std::bit_width(size) - 1;
  const std::size_t eighth = (size >> (rounded - 3)) & 7;
  return {
      (static_cast<std::size_t>(rounded) - kMinSmallExponent) * 8 + eighth,
      size};
}

void delete_small(void* data) {
  auto* block =
      reinterpret_cast<SmallHeader*>(static_cast<char*>(data) - kLine);
  SmallCache& cache = small_cache;
  const std::size_t i = block->class_index;
  const std::size_t size = block->size;
  const uint32_t count = cache.count[i];
  if (C10_LIKELY(
          !cache.closed && cache.kept + size <= kMaxKeptPerThread &&
          count < kMaxKeptBlocks && count * size < kMaxKeptPerClass)) {
    block->next = cache.free[i];
    cache.free[i] = block;
    cache.count[i] = count + 1;
    cache.kept += size;
  } else {
    c10::free_cpu(block);
  }
}

void* acquire_small(std::size_t bytes) {
  SmallCache& cache = small_cache;
  const SizeClass wanted = small_class(bytes);
  SmallHeader* block = cache.free[wanted.index];
  if (C10_LIKELY(block != nullptr)) {
    cache.free[wanted.index] = block->next;
    --cache.count[wanted.index];
    cache.kept -= wanted.size;
  } else {
    // The first block of a thread sees to it that none is lost at its end.
    cache.closed = cache.closed || !small_cache_closer.open;
    block = static_cast<SmallHeader*>(c10::alloc_cpu(kLine + wanted.size));
    block->class_index = wanted.index;
    block->size = wanted.size;
  }
  return reinterpret_cast<char*>(block) + kLine;
}

// ---------------------------------------------------------------- allocator

void report_to_profiler(void* data, std::size_t bytes, bool allocated) {
  if (C10_LIKELY(!c10::memoryProfilingEnabled())) {
    return;
  }
  std::size_t limit = 0;
  const Stats stats = Pool::get().stats(&limit);
  const auto size = static_cast<int64_t>(bytes);
  c10::reportMemoryUsageToProfiler(
      data,
      allocated ? size : -size,
      stats.live_bytes,
      stats.live_bytes + stats.cached_bytes,
      c10::Device(c10::DeviceType::CPU));
}

void delete_pooled(void* data) {
  report_to_profiler(data, Pool::get().release(data), false);
}

struct PoolAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    c10::DataPtr result;
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes < Pool::get().threshold()) {
      if (bytes <= kMaxSmall && bytes != 0 && !c10::memoryProfilingEnabled()) {
        void* data = acquire_small(bytes);
        result = {data, data, &delete_small, cpu};
      } else {
        result = c10::GetCPUAllocator()->allocate(bytes);
      }
    } else {
      void* data = Pool::get().acquire(bytes);
      report_to_profiler(data, bytes, true);
      result = {data, data, &delete_pooled, cpu};
    }
    if (C10_UNLIKELY(debug_fill()) && bytes != 0) {
      std::memset(result.get(), 0xff, bytes);
    }
    return result;
  }

  void copy_data(void* dest, const void* src, std::size_t count)
      const override {
    default_copy_data(dest, src, count);
  }
};

// ---------------------------------------------------------------- tensors

using Ints = c10::SmallVector<int64_t, 8>;

bool read_ints(PyObject* tuple, const char* what, Ints* out) {
  if (!PyTuple_Check(tuple)) {
    PyErr_Format(
        PyExc_TypeError,
        "%s must be a tuple of ints, got %.80s",
        what,
        Py_TYPE(tuple)->tp_name);
    return false;
  }
  const Py_ssize_t n = PyTuple_GET_SIZE(tuple);
  out->resize(static_cast<std::size_t>(n));
  for (Py_ssize_t i = 0; i < n; ++i) {
    const int64_t value = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
    if (value < 0) {
      if (!PyErr_Occurred()) {
        PyErr_Format(
            PyExc_ValueError,
            "%s must not be negative, got %lld",
            what,
            static_cast<long long>(value));
      }
      return false;
    }
    (*out)[static_cast<std::size_t>(i)] = value;
  }
  return true;
}

// A new tensor, or nullptr with an error set.
PyObject* make_tensor(PyObject* size, PyObject* stride, PyObject* dtype) {
  static c10::Allocator* const allocator = pool_allocator();
  Ints sizes;
  Ints strides;
  c10::ScalarType scalar_type{};
  if (!read_ints(size, "size", &sizes) ||
      !read_ints(stride, "stride", &strides)) {
    return nullptr;
  }
  if (sizes.size() != strides.size()) {
    PyErr_Format(
        PyExc_ValueError,
        "size has %zd entries but stride has %zd",
        static_cast<Py_ssize_t>(sizes.size()),
        static_cast<Py_ssize_t>(strides.size()));
    return nullptr;
  }
  if (!dtype_of(dtype, &scalar_type)) {
    PyErr_Format(
        PyExc_TypeError,
        "dtype must be a torch.dtype, got %.80s",
        Py_TYPE(dtype)->tp_name);
    return nullptr;
  }
  return wrap_tensor(at::detail::empty_strided_generic(
      sizes,
      strides,
      allocator,
      c10::DispatchKeySet(c10::DispatchKey::CPU),
      scalar_type));
}

bool read_bytes(PyObject* object, const char* what, std::size_t* bytes) {
  const int64_t value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred()) {
    return false;
  }
  if (value < 0) {
    PyErr_Format(PyExc_ValueError, "%s must not be negative", what);
    return false;
  }
  *bytes = static_cast<std::size_t>(value);
  return true;
}

bool set_item(PyObject* dict, const char* key, std::size_t value) {
  PyObject* number = PyLong_FromSize_t(value);
  const bool done =
      number != nullptr && PyDict_SetItemString(dict, key, number) == 0;
  Py_XDECREF(number);
  return done;
}

} // namespace

c10::Allocator* pool_allocator() {
  static PoolAllocator* allocator = new PoolAllocator();
  return allocator;
}

void* pool_acquire(std::size_t bytes) {
  return Pool::get().acquire(bytes);
}

void pool_release(void* data) noexcept {
  Pool::get().release(data);
}

bool debug_fill() {
  return debug_fill_on.load(std::memory_order_relaxed);
}

PyObject* empty_strided(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return guarded([&]() -> PyObject* {
    if (n != 3) {
      return PyErr_Format(
          PyExc_TypeError,
          "empty_strided takes 3 arguments (size, stride, dtype), got %zd",
          n);
    }
    return make_tensor(args[0], args[1], args[2]);
  });
}

PyObject* allocate(PyObject*, PyObject* specs) {
  return guarded([&]() -> PyObject* {
    if (!PyTuple_Check(specs)) {
      return PyErr_Format(
          PyExc_TypeError,
          "allocate takes a tuple of (size, stride, dtype), got %.80s",
          Py_TYPE(specs)->tp_name);
    }
    const Py_ssize_t n = PyTuple_GET_SIZE(specs);
    PyRef result(PyTuple_New(n));
    for (Py_ssize_t i = 0; result && i < n; ++i) {
      PyObject* spec = PyTuple_GET_ITEM(specs, i);
      if (!PyTuple_Check(spec) || PyTuple_GET_SIZE(spec) != 3) {
        return PyErr_Format(
            PyExc_TypeError,
            "allocate: entry %zd must be a tuple (size, stride, dtype)",
            i);
      }
      PyObject* tensor = make_tensor(
          PyTuple_GET_ITEM(spec, 0),
          PyTuple_GET_ITEM(spec, 1),
          PyTuple_GET_ITEM(spec, 2));
      if (tensor == nullptr) {
        return nullptr;
      }
      PyTuple_SET_ITEM(result.get(), i, tensor);
    }
    return result.release();
  });
}

PyObject* empty_cache(PyObject*, PyObject*) {
  release_small_cache(small_cache);
  Py_BEGIN_ALLOW_THREADS;
  Pool::get().release_cached();
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

PyObject* pool_stats(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* {
    std::size_t limit = 0;
    const Stats stats = Pool::get().stats(&limit);
    PyRef dict(PyDict_New());
    const bool done = dict && set_item(dict.get(), "hits", stats.hits) &&
        set_item(dict.get(), "misses", stats.misses) &&
        set_item(dict.get(), "released_blocks", stats.released_blocks) &&
        set_item(dict.get(), "live_blocks", stats.live_blocks) &&
        set_item(dict.get(), "live_bytes", stats.live_bytes) &&
        set_item(dict.get(), "cached_blocks", stats.cached_blocks) &&
        set_item(dict.get(), "cached_bytes", stats.cached_bytes) &&
        set_item(dict.get(), "limit_bytes", limit) &&
        set_item(dict.get(), "threshold_bytes", Pool::get().threshold());
    return done ? dict.release() : nullptr;
  });
}

PyObject* set_pool_limit(PyObject*, PyObject* object) {
  std::size_t bytes = 0;
  if (!read_bytes(object, "pool limit", &bytes)) {
    return nullptr;
  }
  Pool::get().set_limit(bytes);
  Py_RETURN_NONE;
}

PyObject* set_pool_threshold(PyObject*, PyObject* object) {
  std::size_t bytes = 0;
  if (!read_bytes(object, "pool threshold", &bytes)) {
    return nullptr;
  }
  Pool::get().set_threshold(bytes);
  Py_RETURN_NONE;
}

PyObject* set_debug_fill(PyObject*, PyObject* object) {
  const int on = PyObject_IsTrue(object);
  if (on < 0) {
    return nullptr;
  }
  debug_fill_on.store(on == 1);
  Py_RETURN_NONE;
}

} // namespace torch_helion
