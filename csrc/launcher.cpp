#include "launcher.h"

#include "errors.h"
#include "parallel.h"
#include "pool.h"
#include "python_tensor.h"

#include <structmember.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#ifdef _WIN32
#include <malloc.h>
#endif

namespace torch_helion {
namespace {

// Times are picoseconds, as in plans.
constexpr double kParallelMinCost = 5e6; // a region costs about 1.5 us
constexpr double kReleaseGilMinCost = 50e6;

constexpr std::size_t kInlineSlots = 64;
constexpr std::size_t kInlinePhases = 8;
constexpr std::size_t kAlignment = 64;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kMaxKeptScratch = std::size_t{4} << 20;
constexpr int64_t kMaxScratch = int64_t{1} << 46;

std::size_t round_up(std::size_t bytes, std::size_t to) {
  return (bytes + to - 1) / to * to;
}

// ---------------------------------------------------------------- Kernel

struct Kernel {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  PyObject* name;
  PyObject* dtypes;
  PyObject* keepalive;
  PyObject* weakrefs;
  PlanFunction plan;
  Py_ssize_t n_tensors;
  Py_ssize_t n_ints;
  Py_ssize_t n_phases;
  PhaseFunction* phases; // n_phases of them
  c10::ScalarType* scalar_types; // n_tensors of them
};

PyTypeObject* kernel_type = nullptr;

bool is_kernel(PyObject* object) {
  return Py_TYPE(object) == kernel_type;
}

// ---------------------------------------------------------------- arguments

// Room for n values: on the stack when there are few.
template <class T, std::size_t kInline>
class Buffer {
 public:
  explicit Buffer(std::size_t n) {
    if (n > kInline) {
      heap_.reset(new T[n]);
      data_ = heap_.get();
    }
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() {
    return data_;
  }

 private:
  T inline_[kInline];
  std::unique_ptr<T[]> heap_;
  T* data_ = inline_;
};

const char* name_of(const Kernel* kernel) {
  const char* name = PyUnicode_AsUTF8(kernel->name);
  return name == nullptr ? "?" : name;
}

const char* dtype_name(const Kernel* kernel, Py_ssize_t i) {
  return c10::toString(kernel->scalar_types[i]);
}

// Sets the error that explains why argument i was refused.
void refuse_tensor(const Kernel* kernel, PyObject* object, Py_ssize_t i) {
  if (!is_tensor(object)) {
    PyErr_Format(
        PyExc_TypeError,
        "%s: argument %zd must be a torch.Tensor, got %.80s",
        name_of(kernel),
        i,
        Py_TYPE(object)->tp_name);
    return;
  }
  const c10::TensorImpl* impl = tensor_impl(object);
  if (!is_plain_cpu(*impl)) {
    PyErr_Format(
        PyExc_TypeError,
        "%s: argument %zd must be a dense CPU tensor, but it %s",
        name_of(kernel),
        i,
        why_not_plain_cpu(object));
    return;
  }
  const c10::ScalarType found = c10::typeMetaToScalarType(impl->dtype());
  if (found != kernel->scalar_types[i]) {
    PyErr_Format(
        PyExc_TypeError,
        "%s: argument %zd must have dtype %s, got %s",
        name_of(kernel),
        i,
        dtype_name(kernel, i),
        c10::toString(found));
    return;
  }
  PyErr_Format(
      PyExc_ValueError,
      "%s: argument %zd has elements but no memory (its storage was freed)",
      name_of(kernel),
      i);
}

bool pack_tensor(
    const Kernel* kernel,
    PyObject* object,
    Py_ssize_t i,
    int64_t* slot) {
  if (C10_LIKELY(is_tensor(object))) {
    c10::TensorImpl* impl = tensor_impl(object);
    if (C10_LIKELY(
            is_plain_cpu(*impl) &&
            c10::typeMetaToScalarType(impl->dtype()) ==
                kernel->scalar_types[i])) {
      // Any tensor may be an output: shared copy-on-write memory is copied
      // here, as it is for every writer.
      void* data = impl->mutable_data();
      if (C10_LIKELY(data != nullptr || impl->numel() == 0)) {
        *slot = reinterpret_cast<int64_t>(data);
        return true;
      }
    }
  }
  refuse_tensor(kernel, object, i);
  return false;
}

bool pack_int(
    const Kernel* kernel,
    PyObject* object,
    Py_ssize_t i,
    int64_t* slot) {
  PyRef index; // of a number that is no int, such as numpy.int64
  if (!PyLong_Check(object)) {
    index.reset(PyNumber_Index(object));
    if (!index) {
      if (PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Format(
            PyExc_TypeError,
            "%s: argument %zd must be an int, got %.80s",
            name_of(kernel),
            i,
            Py_TYPE(object)->tp_name);
      }
      return false;
    }
    object = index.get();
  }
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
  if (overflow != 0) {
    PyErr_Format(
        PyExc_ValueError,
        "%s: argument %zd does not fit in 64 bits",
        name_of(kernel),
        i);
    return false;
  }
  *slot = value;
  return !(value == -1 && PyErr_Occurred());
}

// Checks the kernel's arguments and writes their slots.
bool pack(const Kernel* kernel, PyObject* const* args, int64_t* slots) {
  for (Py_ssize_t i = 0; i < kernel->n_tensors; ++i) {
    if (!pack_tensor(kernel, args[i], i, slots + i)) {
      return false;
    }
  }
  const Py_ssize_t arity = kernel->n_tensors + kernel->n_ints;
  for (Py_ssize_t i = kernel->n_tensors; i < arity; ++i) {
    if (!pack_int(kernel, args[i], i, slots + i)) {
      return false;
    }
  }
  return true;
}

bool check_arity(const Kernel* kernel, Py_ssize_t n) {
  if (C10_LIKELY(n == kernel->n_tensors + kernel->n_ints)) {
    return true;
  }
  PyErr_Format(
      PyExc_TypeError,
      "%s: takes %zd arguments (%zd tensors, %zd ints), got %zd",
      name_of(kernel),
      kernel->n_tensors + kernel->n_ints,
      kernel->n_tensors,
      kernel->n_ints,
      n);
  return false;
}

// ---------------------------------------------------------------- memory

// What one thread keeps from launch to launch.
class KeptScratch {
 public:
  ~KeptScratch() {
    drop();
  }
  void* grow_to(std::size_t bytes) {
    if (C10_UNLIKELY(bytes > size_)) {
      drop();
      const std::size_t size = round_up(std::max(bytes, size_ * 2), kPage);
#ifdef _WIN32
      data_ = _aligned_malloc(size, kPage);
#else
      if (posix_memalign(&data_, kPage, size) != 0) {
        data_ = nullptr;
      }
#endif
      if (data_ == nullptr) {
        throw std::bad_alloc();
      }
      size_ = size;
    }
    return data_;
  }
  void drop() noexcept {
#ifdef _WIN32
    _aligned_free(data_);
#else
    std::free(data_);
#endif
    data_ = nullptr;
    size_ = 0;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

thread_local KeptScratch kept_scratch;

// The memory of one launch: small from what the thread keeps, large from the
// pool and back to it.
class LaunchMemory {
 public:
  explicit LaunchMemory(std::size_t bytes) {
    if (bytes == 0) {
      return;
    }
    if (bytes <= kMaxKeptScratch) {
      data_ = static_cast<char*>(kept_scratch.grow_to(bytes));
    } else {
      data_ = static_cast<char*>(pool_acquire(bytes));
      from_pool_ = true;
    }
    if (C10_UNLIKELY(debug_fill())) {
      std::memset(data_, 0xff, bytes);
    }
  }
  ~LaunchMemory() {
    if (from_pool_) {
      pool_release(data_);
    }
  }
  LaunchMemory(const LaunchMemory&) = delete;
  LaunchMemory& operator=(const LaunchMemory&) = delete;
  char* data() const {
    return data_;
  }

 private:
  char* data_ = nullptr;
  bool from_pool_ = false;
};

// ---------------------------------------------------------------- a phase

// One phase on several threads.
struct Region {
  PhaseFunction phase;
  const int64_t* slots;
  char* scratch;
  std::size_t scratch_stride;
  void* workspace;
  std::atomic<int64_t> status{kOk};
};

void run_share(void* data, int64_t begin, int64_t end, int64_t thread) {
  auto& region = *static_cast<Region*>(data);
  const int64_t status = region.phase(
      region.slots,
      begin,
      end,
      region.scratch +
          static_cast<std::size_t>(thread) * region.scratch_stride,
      region.workspace);
  if (status != kOk) {
    // The smallest status wins, whatever the threads' order was.
    int64_t seen = region.status.load();
    while ((seen == kOk || status < seen) &&
           !region.status.compare_exchange_weak(seen, status)) {
    }
  }
}

// ---------------------------------------------------------------- running

struct PhasePlan {
  int64_t steps;
  int64_t step_cost;
  int64_t scratch;
};

struct PhaseRun {
  int threads;
  std::size_t scratch_stride;
};

// What all phases of a launch need together.
struct Needs {
  std::size_t workspace = 0;
  std::size_t scratch = 0;
  double time = 0; // on the clock
};

void check_plan(
    const Kernel* kernel,
    int64_t workspace,
    const PhasePlan* phases) {
  bool valid = workspace >= 0 && workspace <= kMaxScratch;
  for (Py_ssize_t k = 0; k < kernel->n_phases; ++k) {
    valid = valid && phases[k].steps >= 0 && phases[k].scratch >= 0 &&
        phases[k].scratch <= kMaxScratch;
  }
  TORCH_CHECK(
      valid,
      PyUnicode_AsUTF8(kernel->name),
      ": its plan asks for an impossible number of steps or bytes");
}

Needs schedule(
    const Kernel* kernel,
    int64_t workspace,
    const PhasePlan* phases,
    PhaseRun* runs) {
  Needs needs;
  needs.workspace = round_up(static_cast<std::size_t>(workspace), kAlignment);
  int available = 0; // 0: not asked yet
  for (Py_ssize_t k = 0; k < kernel->n_phases; ++k) {
    const PhasePlan& phase = phases[k];
    const double cost = static_cast<double>(phase.steps) *
        static_cast<double>(std::max<int64_t>(phase.step_cost, 0));
    int threads = 1;
    if (cost >= kParallelMinCost && phase.steps > 1) {
      available = available == 0 ? usable_threads() : available;
      threads = static_cast<int>(std::min<int64_t>(available, phase.steps));
    }
    const auto scratch = static_cast<std::size_t>(phase.scratch);
    // Threads share no page and no pair of cache lines.
    const std::size_t stride =
        round_up(scratch, scratch >= kPage ? kPage : 2 * kAlignment);
    runs[k] = {threads, stride};
    needs.scratch =
        std::max(needs.scratch, stride * static_cast<std::size_t>(threads));
    needs.time += cost / threads;
  }
  return needs;
}

int64_t run_phases(
    const Kernel* kernel,
    const int64_t* slots,
    const PhasePlan* phases,
    const PhaseRun* runs,
    char* workspace,
    char* scratch) noexcept {
  for (Py_ssize_t k = 0; k < kernel->n_phases; ++k) {
    const int64_t steps = phases[k].steps;
    int64_t status = kOk;
    if (runs[k].threads > 1) {
      Region region{
          kernel->phases[k],
          slots,
          scratch,
          runs[k].scratch_stride,
          workspace};
      split_over_threads(steps, runs[k].threads, &run_share, &region);
      status = region.status.load();
    } else if (steps > 0) {
      status = kernel->phases[k](slots, 0, steps, scratch, workspace);
    }
    if (C10_UNLIKELY(status != kOk)) {
      return status;
    }
  }
  return kOk;
}

void set_status_error(const Kernel* kernel, int64_t status) {
  switch (status) {
    case kIndexOutOfRange:
      PyErr_Format(
          PyExc_IndexError, "index out of range in kernel %U", kernel->name);
      return;
    case kIntegerDivisionByZero: // the text that torch itself gives
      PyErr_SetString(PyExc_RuntimeError, "ZeroDivisionError");
      return;
    default:
      PyErr_Format(
          PyExc_RuntimeError,
          "kernel %U failed with status %lld",
          kernel->name,
          static_cast<long long>(status));
  }
}

// out[0] of the plan, and its phases behind it.
static_assert(sizeof(PhasePlan) == 3 * sizeof(int64_t));

// Runs the kernel on packed arguments; false with a Python error set.
bool run(const Kernel* kernel, const int64_t* slots) {
  const auto n_phases = static_cast<std::size_t>(kernel->n_phases);
  Buffer<int64_t, 1 + 3 * kInlinePhases> out(1 + 3 * n_phases);
  kernel->plan(slots, out.data());
  const int64_t workspace = out.data()[0];
  const auto* phases = reinterpret_cast<const PhasePlan*>(out.data() + 1);
  check_plan(kernel, workspace, phases);

  Buffer<PhaseRun, kInlinePhases> runs(n_phases);
  const Needs needs = schedule(kernel, workspace, phases, runs.data());
  const LaunchMemory memory(needs.workspace + needs.scratch);
  char* scratch = memory.data() + needs.workspace;

  int64_t status = kOk;
  if (needs.time > kReleaseGilMinCost) {
    Py_BEGIN_ALLOW_THREADS;
    status = run_phases(
        kernel, slots, phases, runs.data(), memory.data(), scratch);
    Py_END_ALLOW_THREADS;
  } else {
    status = run_phases(
        kernel, slots, phases, runs.data(), memory.data(), scratch);
  }
  if (C10_UNLIKELY(status != kOk)) {
    set_status_error(kernel, status);
    return false;
  }
  return true;
}

bool pack_and_run(const Kernel* kernel, PyObject* const* args) {
  Buffer<int64_t, kInlineSlots> slots(
      static_cast<std::size_t>(kernel->n_tensors + kernel->n_ints));
  return pack(kernel, args, slots.data()) && run(kernel, slots.data());
}

// ---------------------------------------------------------------- the type

PyObject* kernel_call(
    PyObject* self,
    PyObject* const* args,
    size_t nargsf,
    PyObject* kwnames) {
  return guarded([&]() -> PyObject* {
    const auto* kernel = reinterpret_cast<const Kernel*>(self);
    if (kwnames != nullptr && PyTuple_GET_SIZE(kwnames) != 0) {
      return PyErr_Format(
          PyExc_TypeError, "%s: takes no keyword arguments", name_of(kernel));
    }
    if (!check_arity(kernel, PyVectorcall_NARGS(nargsf)) ||
        !pack_and_run(kernel, args)) {
      return nullptr;
    }
    Py_RETURN_NONE;
  });
}

PyObject* kernel_plan(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return guarded([&]() -> PyObject* {
    const auto* kernel = reinterpret_cast<const Kernel*>(self);
    std::vector<int64_t> slots(static_cast<std::size_t>(n) + 1);
    if (!check_arity(kernel, n) || !pack(kernel, args, slots.data())) {
      return nullptr;
    }
    std::vector<int64_t> out(
        1 + 3 * static_cast<std::size_t>(kernel->n_phases));
    kernel->plan(slots.data(), out.data());
    PyRef list(PyList_New(static_cast<Py_ssize_t>(out.size())));
    for (std::size_t i = 0; list && i < out.size(); ++i) {
      PyObject* number = PyLong_FromLongLong(out[i]);
      if (number == nullptr) {
        return nullptr;
      }
      PyList_SET_ITEM(list.get(), static_cast<Py_ssize_t>(i), number);
    }
    return list.release();
  });
}

void* address_of(PyObject* object) {
  if (!PyLong_Check(object)) {
    PyErr_SetString(PyExc_TypeError, "Kernel: an address must be an int");
    return nullptr;
  }
  void* address = PyLong_AsVoidPtr(object);
  if (address == nullptr && !PyErr_Occurred()) {
    PyErr_SetString(PyExc_ValueError, "Kernel: an address is 0");
  }
  return address;
}

bool fill_kernel(
    Kernel* kernel,
    PyObject* plan,
    PyObject* phases,
    PyObject* dtypes) {
  kernel->plan = reinterpret_cast<PlanFunction>(address_of(plan));
  if (kernel->plan == nullptr) {
    return false;
  }
  kernel->n_phases = PyTuple_GET_SIZE(phases);
  kernel->n_tensors = PyTuple_GET_SIZE(dtypes);
  kernel->phases = new PhaseFunction[static_cast<size_t>(kernel->n_phases)];
  kernel->scalar_types =
      new c10::ScalarType[static_cast<size_t>(kernel->n_tensors)];
  for (Py_ssize_t k = 0; k < kernel->n_phases; ++k) {
    kernel->phases[k] = reinterpret_cast<PhaseFunction>(
        address_of(PyTuple_GET_ITEM(phases, k)));
    if (kernel->phases[k] == nullptr) {
      return false;
    }
  }
  for (Py_ssize_t i = 0; i < kernel->n_tensors; ++i) {
    if (!dtype_of(PyTuple_GET_ITEM(dtypes, i), &kernel->scalar_types[i])) {
      PyErr_Format(
          PyExc_TypeError, "Kernel: entry %zd of dtypes is no torch.dtype", i);
      return false;
    }
  }
  return true;
}

PyObject* kernel_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {
      "name", "plan", "phases", "dtypes", "n_ints", "keepalive", nullptr};
  PyObject* name = nullptr;
  PyObject* plan = nullptr;
  PyObject* phases = nullptr;
  PyObject* dtypes = nullptr;
  Py_ssize_t n_ints = 0;
  PyObject* keepalive = nullptr;
  if (!PyArg_ParseTupleAndKeywords(
          args,
          kwargs,
          "UOO!O!nO:Kernel",
          const_cast<char**>(names),
          &name,
          &plan,
          &PyTuple_Type,
          &phases,
          &PyTuple_Type,
          &dtypes,
          &n_ints,
          &keepalive)) {
    return nullptr;
  }
  if (n_ints < 0) {
    PyErr_SetString(PyExc_ValueError, "Kernel: n_ints must not be negative");
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    PyRef self(type->tp_alloc(type, 0));
    auto* kernel = reinterpret_cast<Kernel*>(self.get());
    if (kernel == nullptr || !fill_kernel(kernel, plan, phases, dtypes)) {
      return nullptr;
    }
    kernel->vectorcall = &kernel_call;
    kernel->n_ints = n_ints;
    kernel->name = Py_NewRef(name);
    kernel->dtypes = Py_NewRef(dtypes);
    kernel->keepalive = Py_NewRef(keepalive);
    return self.release();
  });
}

int kernel_traverse(PyObject* self, visitproc visit, void* arg) {
  auto* kernel = reinterpret_cast<Kernel*>(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(kernel->dtypes);
  Py_VISIT(kernel->keepalive);
  return 0;
}

void kernel_dealloc(PyObject* self) {
  auto* kernel = reinterpret_cast<Kernel*>(self);
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  if (kernel->weakrefs != nullptr) {
    PyObject_ClearWeakRefs(self);
  }
  delete[] kernel->phases;
  delete[] kernel->scalar_types;
  Py_CLEAR(kernel->name);
  Py_CLEAR(kernel->dtypes);
  Py_CLEAR(kernel->keepalive);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* kernel_repr(PyObject* self) {
  const auto* kernel = reinterpret_cast<const Kernel*>(self);
  return PyUnicode_FromFormat(
      "<torch_helion kernel %U: %zd tensors, %zd ints, %zd phases>",
      kernel->name,
      kernel->n_tensors,
      kernel->n_ints,
      kernel->n_phases);
}

// A kernel never changes: its copy is itself.
PyObject* kernel_copy(PyObject* self, PyObject*) {
  return Py_NewRef(self);
}

PyObject* kernel_reduce(PyObject* self, PyObject*) {
  return PyErr_Format(
      PyExc_TypeError,
      "cannot pickle %R: it is machine code of this process",
      self);
}

PyMethodDef kernel_methods[] = {
    {"plan",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&kernel_plan)),
     METH_FASTCALL,
     "plan(*args) -> list of ints: workspace bytes, then steps, cost of a "
     "step in ps and scratch bytes of each phase"},
    {"__copy__", &kernel_copy, METH_NOARGS, nullptr},
    {"__deepcopy__", &kernel_copy, METH_O, nullptr},
    {"__reduce__", &kernel_reduce, METH_NOARGS, nullptr},
    {"__reduce_ex__", &kernel_reduce, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef kernel_members[] = {
    {"name", T_OBJECT, offsetof(Kernel, name), READONLY, nullptr},
    {"__name__", T_OBJECT, offsetof(Kernel, name), READONLY, nullptr},
    {"dtypes", T_OBJECT, offsetof(Kernel, dtypes), READONLY, nullptr},
    {"keepalive", T_OBJECT, offsetof(Kernel, keepalive), READONLY, nullptr},
    {"n_tensors", T_PYSSIZET, offsetof(Kernel, n_tensors), READONLY, nullptr},
    {"n_ints", T_PYSSIZET, offsetof(Kernel, n_ints), READONLY, nullptr},
    {"n_phases", T_PYSSIZET, offsetof(Kernel, n_phases), READONLY, nullptr},
    {"__vectorcalloffset__",
     T_PYSSIZET,
     offsetof(Kernel, vectorcall),
     READONLY,
     nullptr},
    {"__weaklistoffset__",
     T_PYSSIZET,
     offsetof(Kernel, weakrefs),
     READONLY,
     nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot kernel_slots[] = {
    {Py_tp_doc,
     const_cast<char*>(
         "Kernel(name, plan, phases, dtypes, n_ints, keepalive)\n--\n\n"
         "A compiled kernel: called with its tensors, then its ints.")},
    {Py_tp_new, reinterpret_cast<void*>(&kernel_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(&kernel_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(&kernel_traverse)},
    {Py_tp_call, reinterpret_cast<void*>(&PyVectorcall_Call)},
    {Py_tp_repr, reinterpret_cast<void*>(&kernel_repr)},
    {Py_tp_methods, kernel_methods},
    {Py_tp_members, kernel_members},
    {0, nullptr}};

PyType_Spec kernel_spec = {
    "torch_helion._C.Kernel",
    sizeof(Kernel),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
        Py_TPFLAGS_IMMUTABLETYPE,
    kernel_slots};

} // namespace

PyObject* make_kernel_type() {
  PyObject* type = PyType_FromSpec(&kernel_spec);
  kernel_type = reinterpret_cast<PyTypeObject*>(type);
  return type;
}

bool is_kernel_object(PyObject* object) {
  return is_kernel(object);
}

KernelArity kernel_arity(PyObject* kernel) {
  const auto* self = reinterpret_cast<const Kernel*>(kernel);
  return {self->n_tensors, self->n_ints};
}

const c10::ScalarType* tensor_dtypes(PyObject* kernel) {
  return reinterpret_cast<const Kernel*>(kernel)->scalar_types;
}

bool run_packed(PyObject* kernel, const int64_t* slots) {
  return run(reinterpret_cast<const Kernel*>(kernel), slots);
}

PyObject* launch(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return guarded([&]() -> PyObject* {
    Py_ssize_t i = 0;
    while (i < n) {
      if (!is_kernel(args[i])) {
        return PyErr_Format(
            PyExc_TypeError,
            "launch: argument %zd must be a Kernel, got %.80s (does the "
            "kernel before it have the right number of arguments?)",
            i,
            Py_TYPE(args[i])->tp_name);
      }
      const auto* kernel = reinterpret_cast<const Kernel*>(args[i]);
      const Py_ssize_t arity = kernel->n_tensors + kernel->n_ints;
      ++i;
      if (!check_arity(kernel, std::min(arity, n - i)) ||
          !pack_and_run(kernel, args + i)) {
        return nullptr;
      }
      i += arity;
    }
    Py_RETURN_NONE;
  });
}

void drop_scratch() noexcept {
  kept_scratch.drop();
}

} // namespace torch_helion
