#include "call.h"

#include "errors.h"
#include "launcher.h"
#include "python_tensor.h"

#include <c10/core/AutogradState.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <structmember.h>

#include <cstring>
#include <utility>
#include <vector>

namespace torch_helion {
namespace {

constexpr int64_t kAny = -1; // a size or stride that may be anything
constexpr int64_t kNotOne = -2; // a size that may be anything but 1

// What one value must be.
struct Spec {
  enum Kind { kAnything, kTensor, kType, kValue } kind = kAnything;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  std::vector<int64_t> sizes; // kAny, kNotOne, or exactly this
  std::vector<int64_t> strides;
  PyRef object; // the type, or the value
};

// Where an int argument of a kernel comes from.
struct Source {
  enum Kind : int64_t { kConstant, kSize, kStride, kInt, kFloat } kind;
  int64_t value; // the constant, or the position of the value
  int64_t dim;
};

// Two sizes, strides or ints that must be equal.
struct Tie {
  Source left;
  Source right;
};

using Specs = std::vector<Spec>;

// ---------------------------------------------------------------- checks

bool fits_all(c10::IntArrayRef found, const std::vector<int64_t>& wanted) {
  if (found.size() != wanted.size()) {
    return false;
  }
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] != found[i] && wanted[i] != kAny &&
        (wanted[i] != kNotOne || found[i] == 1)) {
      return false;
    }
  }
  return true;
}

// Strides of dimensions of one element, and of empty tensors, mean nothing.
bool fits_strides(const c10::TensorImpl& impl, const Spec& spec) {
  if (C10_LIKELY(fits_all(impl.strides(), spec.strides))) {
    return true;
  }
  if (impl.strides().size() != spec.strides.size()) {
    return false;
  }
  for (std::size_t i = 0; i < spec.strides.size(); ++i) {
    if (spec.strides[i] != kAny && spec.strides[i] != impl.strides()[i] &&
        impl.sizes()[i] > 1 && impl.numel() > 0) {
      return false;
    }
  }
  return true;
}

bool fits_tensor(PyObject* object, const Spec& spec, bool grad) {
  if (!is_tensor(object)) {
    return false;
  }
  const c10::TensorImpl* impl = tensor_impl(object);
  return impl != nullptr && is_plain_cpu(*impl) &&
      c10::typeMetaToScalarType(impl->dtype()) == spec.dtype &&
      !(grad && impl->requires_grad()) && fits_all(impl->sizes(), spec.sizes) &&
      fits_strides(*impl, spec);
}

bool fits(PyObject* object, const Spec& spec, bool grad) {
  switch (spec.kind) {
    case Spec::kAnything:
      return true;
    case Spec::kTensor:
      return fits_tensor(object, spec, grad);
    case Spec::kType:
      return reinterpret_cast<PyObject*>(Py_TYPE(object)) == spec.object.get();
    case Spec::kValue:
      break;
  }
  PyObject* wanted = spec.object.get();
  if (object == wanted) {
    return true;
  }
  if (Py_TYPE(object) != Py_TYPE(wanted)) {
    return false;
  }
  const int equal = PyObject_RichCompareBool(object, wanted, Py_EQ);
  if (equal < 0) {
    PyErr_Clear();
  }
  return equal == 1;
}

// Whether somebody wants to see what runs: a mode must not be bypassed.
bool is_watched() {
  return c10::impl::TorchDispatchModeTLS::any_modes_set();
}

bool grad_mode() {
  return c10::AutogradState::get_tls_state().get_grad_mode();
}

bool fit(const Specs& specs, PyObject* const* values, Py_ssize_t n, bool grad) {
  if (static_cast<std::size_t>(n) != specs.size() || is_watched()) {
    return false;
  }
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (!fits(values[i], specs[static_cast<std::size_t>(i)], grad)) {
      return false;
    }
  }
  return true;
}

// ---------------------------------------------------------------- reading

bool read_extents(PyObject* tuple, std::vector<int64_t>* found) {
  if (!PyTuple_Check(tuple)) {
    PyErr_SetString(PyExc_TypeError, "spec: sizes and strides are tuples");
    return false;
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
    PyObject* item = PyTuple_GET_ITEM(tuple, i);
    int64_t value = kAny;
    if (item != Py_None) {
      value = PyLong_AsLongLong(item);
      if (value == -1 && PyErr_Occurred()) {
        return false;
      }
    }
    found->push_back(value);
  }
  return true;
}

bool read_spec(PyObject* object, Spec* spec) {
  if (object == Py_None) {
    return true;
  }
  const char* kind = nullptr;
  PyObject* first = nullptr;
  PyObject* sizes = nullptr;
  PyObject* strides = nullptr;
  if (!PyTuple_Check(object) ||
      !PyArg_ParseTuple(
          object, "sO|OO:spec", &kind, &first, &sizes, &strides)) {
    if (!PyErr_Occurred()) {
      PyErr_SetString(PyExc_TypeError, "a spec is None or a tuple");
    }
    return false;
  }
  if (std::strcmp(kind, "tensor") == 0) {
    spec->kind = Spec::kTensor;
    if (!dtype_of(first, &spec->dtype) || strides == nullptr) {
      PyErr_SetString(PyExc_TypeError, "spec: (tensor, dtype, sizes, strides)");
      return false;
    }
    return read_extents(sizes, &spec->sizes) &&
        read_extents(strides, &spec->strides);
  }
  const bool is_type = std::strcmp(kind, "type") == 0;
  if (!is_type && std::strcmp(kind, "value") != 0) {
    PyErr_Format(PyExc_ValueError, "spec: unknown kind '%s'", kind);
    return false;
  }
  spec->kind = is_type ? Spec::kType : Spec::kValue;
  spec->object.reset(Py_NewRef(first));
  return true;
}

bool read_specs(PyObject* tuple, Specs* specs) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
    specs->emplace_back();
    if (!read_spec(PyTuple_GET_ITEM(tuple, i), &specs->back())) {
      return false;
    }
  }
  return true;
}

int visit_specs(const Specs& specs, visitproc visit, void* arg) {
  for (const Spec& spec : specs) {
    Py_VISIT(spec.object.get());
  }
  return 0;
}

// ---------------------------------------------------------------- Match

struct Match {
  PyObject_HEAD
  Specs* specs;
};

PyObject* match_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* tuple = nullptr;
  if (!PyArg_ParseTuple(args, "O!:Match", &PyTuple_Type, &tuple)) {
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    PyRef self(type->tp_alloc(type, 0));
    auto* match = reinterpret_cast<Match*>(self.get());
    if (match == nullptr) {
      return nullptr;
    }
    match->specs = new Specs();
    return read_specs(tuple, match->specs) ? self.release() : nullptr;
  });
}

PyObject* match_call(PyObject* self, PyObject* args, PyObject*) {
  return guarded([&]() -> PyObject* {
    PyObject* values = nullptr;
    if (PyTuple_GET_SIZE(args) != 1 ||
        !PyTuple_Check(values = PyTuple_GET_ITEM(args, 0))) {
      PyErr_SetString(PyExc_TypeError, "Match: takes one tuple");
      return nullptr;
    }
    auto* const* items = reinterpret_cast<PyTupleObject*>(values)->ob_item;
    const auto* match = reinterpret_cast<const Match*>(self);
    const Py_ssize_t n = PyTuple_GET_SIZE(values);
    return PyBool_FromLong(fit(*match->specs, items, n, grad_mode()));
  });
}

int match_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const auto* specs = reinterpret_cast<Match*>(self)->specs;
  return specs == nullptr ? 0 : visit_specs(*specs, visit, arg);
}

void match_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  delete reinterpret_cast<Match*>(self)->specs;
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot match_slots[] = {
    {Py_tp_doc,
     const_cast<char*>(
         "Match(specs)\n--\n\nmatch(values) -> whether a tuple of values is as "
         "the specs say, and nothing asks to see what runs.")},
    {Py_tp_new, reinterpret_cast<void*>(&match_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(&match_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(&match_traverse)},
    {Py_tp_call, reinterpret_cast<void*>(&match_call)},
    {0, nullptr}};

PyType_Spec match_spec = {
    "torch_helion._C.Match",
    sizeof(Match),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    match_slots};

// ---------------------------------------------------------------- Launch

// Two tensor arguments whose memory interleaves without an element in common,
// and how many bytes the second lies behind the first.
struct Apart {
  std::size_t first;
  std::size_t second;
  int64_t distance;
};

struct Launch {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  PyObject* kernel;
  PyObject* miss;
  Specs* specs;
  std::vector<Py_ssize_t>* tensors; // position of each tensor argument
  std::vector<char>* written; // whether the kernel writes it
  std::vector<Source>* ints;
  std::vector<Tie>* ties;
  std::vector<std::pair<int64_t, int64_t>>* same; // values that are one tensor
  std::vector<Apart>* apart;
};

// Not every value is checked to be a tensor or number: false sends the call
// to Python.
bool read_source(const Source& source, PyObject* const* values, int64_t* slot) {
  if (source.kind == Source::kConstant) {
    *slot = source.value;
    return true;
  }
  PyObject* object = values[source.value];
  if (source.kind == Source::kInt) {
    if (!PyLong_Check(object)) {
      return false;
    }
    int overflow = 0;
    *slot = PyLong_AsLongLongAndOverflow(object, &overflow);
    return overflow == 0;
  }
  if (source.kind == Source::kFloat) {
    if (!PyFloat_Check(object)) {
      return false;
    }
    const double value = PyFloat_AS_DOUBLE(object);
    std::memcpy(slot, &value, sizeof(value));
    return true;
  }
  if (!is_tensor(object)) {
    return false;
  }
  const c10::TensorImpl* impl = tensor_impl(object);
  const auto extents =
      source.kind == Source::kSize ? impl->sizes() : impl->strides();
  if (source.dim >= static_cast<int64_t>(extents.size())) {
    return false;
  }
  *slot = extents[static_cast<std::size_t>(source.dim)];
  return true;
}

// A stride that no element is reached by is as good as any other.
bool means_nothing(const Source& source, PyObject* const* values) {
  if (source.kind != Source::kStride) {
    return false;
  }
  const c10::TensorImpl* impl = tensor_impl(values[source.value]);
  return impl->numel() == 0 ||
      impl->sizes()[static_cast<std::size_t>(source.dim)] == 1;
}

bool read_ints(const Launch* self, PyObject* const* values, int64_t* slots) {
  for (const Source& source : *self->ints) {
    if (!read_source(source, values, slots++)) {
      return false;
    }
  }
  for (const Tie& tie : *self->ties) {
    int64_t left = 0;
    int64_t right = 0;
    if (!read_source(tie.left, values, &left) ||
        !read_source(tie.right, values, &right)) {
      return false;
    }
    if (left != right && !means_nothing(tie.left, values) &&
        !means_nothing(tie.right, values)) {
      return false;
    }
  }
  return true;
}

bool read_tensors(const Launch* self, PyObject* const* values, int64_t* slots) {
  const c10::ScalarType* dtypes = tensor_dtypes(self->kernel);
  for (std::size_t i = 0; i < self->tensors->size(); ++i) {
    PyObject* object = values[(*self->tensors)[i]];
    if (!is_tensor(object)) {
      return false;
    }
    c10::TensorImpl* impl = tensor_impl(object);
    if (!is_plain_cpu(*impl) ||
        c10::typeMetaToScalarType(impl->dtype()) != dtypes[i]) {
      return false;
    }
    void* data = impl->mutable_data();
    if (data == nullptr && impl->numel() != 0) {
      return false;
    }
    slots[i] = reinterpret_cast<int64_t>(data);
  }
  return true;
}

// Bytes from the first to behind the last element.
int64_t extent_of(const c10::TensorImpl* impl) {
  if (impl->numel() == 0) {
    return 0;
  }
  const auto sizes = impl->sizes();
  const auto strides = impl->strides();
  int64_t last = 0;
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    last += (sizes[d] - 1) * strides[d];
  }
  return (last + 1) * static_cast<int64_t>(impl->itemsize());
}

bool lie_apart(
    const Launch* self,
    PyObject* const* values,
    const int64_t* slots,
    std::size_t i,
    std::size_t j) {
  const int64_t begin = slots[i];
  const int64_t other = slots[j];
  const auto& places = *self->tensors;
  if (begin + extent_of(tensor_impl(values[places[i]])) <= other ||
      other + extent_of(tensor_impl(values[places[j]])) <= begin) {
    return true;
  }
  for (const Apart& known : *self->apart) {
    if (known.first == i && known.second == j) {
      return other - begin == known.distance;
    }
    if (known.first == j && known.second == i) {
      return begin - other == known.distance;
    }
  }
  return false;
}

// Two arguments are one tensor exactly where the kernel was made for that: one
// that writes through the first and reads through the second is another. No
// other one shares memory with what the kernel writes.
bool aliases_fit(
    const Launch* self,
    PyObject* const* values,
    const int64_t* slots) {
  const std::size_t n = self->tensors->size();
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n && (*self->written)[i] != 0; ++j) {
      if (i != j && !lie_apart(self, values, slots, i, j)) {
        return false;
      }
    }
  }
  for (const auto& [a, b] : *self->same) {
    if (!is_tensor(values[a]) || !is_tensor(values[b]) ||
        tensor_impl(values[a])->data() != tensor_impl(values[b])->data()) {
      return false;
    }
  }
  return true;
}

// What autograd has saved of these tensors is no longer what they hold.
void count_writes(const Launch* self, PyObject* const* values) {
  for (std::size_t i = 0; i < self->tensors->size(); ++i) {
    if ((*self->written)[i] != 0) {
      c10::TensorImpl* impl = tensor_impl(values[(*self->tensors)[i]]);
      if (!impl->is_inference()) {
        impl->bump_version();
      }
    }
  }
}

PyObject* launch_call(
    PyObject* object,
    PyObject* const* values,
    size_t nargsf,
    PyObject* kwnames) {
  return guarded([&]() -> PyObject* {
    const auto* self = reinterpret_cast<const Launch*>(object);
    const Py_ssize_t n = PyVectorcall_NARGS(nargsf);
    const std::size_t n_slots = self->tensors->size() + self->ints->size();
    constexpr std::size_t kInline = 64;
    int64_t inline_slots[kInline];
    std::vector<int64_t> more(n_slots > kInline ? n_slots : 0);
    int64_t* slots = n_slots > kInline ? more.data() : inline_slots;
    const bool ready = kwnames == nullptr &&
        fit(*self->specs, values, n, false) &&
        read_tensors(self, values, slots) &&
        aliases_fit(self, values, slots) &&
        read_ints(self, values, slots + self->tensors->size());
    if (C10_UNLIKELY(!ready)) {
      return PyObject_Vectorcall(self->miss, values, nargsf, kwnames);
    }
    count_writes(self, values);
    if (!run_packed(self->kernel, slots)) {
      return nullptr;
    }
    Py_RETURN_NONE;
  });
}

bool read_source_row(PyObject* row, Source* source) {
  long long kind = 0;
  long long value = 0;
  long long dim = 0;
  if (!PyArg_ParseTuple(row, "LLL:source", &kind, &value, &dim)) {
    return false;
  }
  *source = {static_cast<Source::Kind>(kind), value, dim};
  if (kind < Source::kConstant || kind > Source::kFloat) {
    PyErr_Format(PyExc_ValueError, "Launch: unknown source %lld", kind);
    return false;
  }
  return true;
}

bool position_is_valid(const Launch* self, int64_t position) {
  const auto n = static_cast<int64_t>(self->specs->size());
  if (position >= 0 && position < n) {
    return true;
  }
  PyErr_Format(
      PyExc_ValueError,
      "Launch: there is no value %lld",
      static_cast<long long>(position));
  return false;
}

bool source_is_valid(const Launch* self, const Source& source) {
  if (source.kind == Source::kConstant) {
    return true;
  }
  if (source.dim < 0) {
    PyErr_SetString(PyExc_ValueError, "Launch: a dimension is negative");
    return false;
  }
  return position_is_valid(self, source.value);
}

bool fill_tensors(Launch* self, PyObject* tensors, PyObject* written) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i) {
    const Py_ssize_t position = PyLong_AsSsize_t(PyTuple_GET_ITEM(tensors, i));
    if (PyErr_Occurred() || !position_is_valid(self, position)) {
      return false;
    }
    self->tensors->push_back(position);
    const int writes = PySequence_Contains(
        written, PyRef(PyLong_FromSsize_t(i)).get());
    if (writes < 0) {
      return false;
    }
    self->written->push_back(static_cast<char>(writes));
  }
  return true;
}

bool fill_ints(Launch* self, PyObject* ints, PyObject* ties) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(ints); ++i) {
    Source source{};
    if (!read_source_row(PyTuple_GET_ITEM(ints, i), &source) ||
        !source_is_valid(self, source)) {
      return false;
    }
    self->ints->push_back(source);
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(ties); ++i) {
    PyObject* left = nullptr;
    PyObject* right = nullptr;
    Tie tie{};
    if (!PyArg_ParseTuple(
            PyTuple_GET_ITEM(ties, i), "OO:tie", &left, &right) ||
        !read_source_row(left, &tie.left) ||
        !read_source_row(right, &tie.right) ||
        !source_is_valid(self, tie.left) ||
        !source_is_valid(self, tie.right)) {
      return false;
    }
    self->ties->push_back(tie);
  }
  return true;
}

bool fill_same(Launch* self, PyObject* same) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(same); ++i) {
    long long a = 0;
    long long b = 0;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(same, i), "LL:same", &a, &b) ||
        !position_is_valid(self, a) || !position_is_valid(self, b)) {
      return false;
    }
    self->same->emplace_back(a, b);
  }
  return true;
}

bool fill_apart(Launch* self, PyObject* apart) {
  const Py_ssize_t n = apart == nullptr ? 0 : PyTuple_GET_SIZE(apart);
  for (Py_ssize_t i = 0; i < n; ++i) {
    long long first = 0;
    long long second = 0;
    long long distance = 0;
    if (!PyArg_ParseTuple(
            PyTuple_GET_ITEM(apart, i),
            "LLL:apart",
            &first,
            &second,
            &distance)) {
      return false;
    }
    self->apart->push_back(
        {static_cast<std::size_t>(first),
         static_cast<std::size_t>(second),
         distance});
  }
  return true;
}

bool arity_is_right(const Launch* self) {
  const KernelArity arity = kernel_arity(self->kernel);
  if (arity.tensors == static_cast<Py_ssize_t>(self->tensors->size()) &&
      arity.ints == static_cast<Py_ssize_t>(self->ints->size())) {
    return true;
  }
  PyErr_Format(
      PyExc_ValueError,
      "Launch: the kernel takes %zd tensors and %zd ints, got %zu and %zu",
      arity.tensors,
      arity.ints,
      self->tensors->size(),
      self->ints->size());
  return false;
}

PyObject* launch_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* kernel = nullptr;
  PyObject* specs = nullptr;
  PyObject* tensors = nullptr;
  PyObject* ints = nullptr;
  PyObject* ties = nullptr;
  PyObject* written = nullptr;
  PyObject* same = nullptr;
  PyObject* miss = nullptr;
  PyObject* apart = nullptr;
  if (!PyArg_ParseTuple(
          args,
          "OO!O!O!O!O!O!O|O!:Launch",
          &kernel,
          &PyTuple_Type,
          &specs,
          &PyTuple_Type,
          &tensors,
          &PyTuple_Type,
          &ints,
          &PyTuple_Type,
          &ties,
          &PyTuple_Type,
          &written,
          &PyTuple_Type,
          &same,
          &miss,
          &PyTuple_Type,
          &apart)) {
    return nullptr;
  }
  if (!is_kernel_object(kernel)) {
    PyErr_SetString(PyExc_TypeError, "Launch: the first argument is a Kernel");
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    PyRef object(type->tp_alloc(type, 0));
    auto* self = reinterpret_cast<Launch*>(object.get());
    if (self == nullptr) {
      return nullptr;
    }
    self->vectorcall = &launch_call;
    self->kernel = Py_NewRef(kernel);
    self->miss = Py_NewRef(miss);
    self->specs = new Specs();
    self->tensors = new std::vector<Py_ssize_t>();
    self->written = new std::vector<char>();
    self->ints = new std::vector<Source>();
    self->ties = new std::vector<Tie>();
    self->same = new std::vector<std::pair<int64_t, int64_t>>();
    self->apart = new std::vector<Apart>();
    const bool right = read_specs(specs, self->specs) &&
        fill_tensors(self, tensors, written) && fill_ints(self, ints, ties) &&
        fill_same(self, same) && fill_apart(self, apart) &&
        arity_is_right(self);
    return right ? object.release() : nullptr;
  });
}

int launch_traverse(PyObject* object, visitproc visit, void* arg) {
  const auto* self = reinterpret_cast<Launch*>(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->kernel);
  Py_VISIT(self->miss);
  return self->specs == nullptr ? 0 : visit_specs(*self->specs, visit, arg);
}

int launch_clear(PyObject* object) {
  // `miss` is what refers back to the launch's owner.
  Py_CLEAR(reinterpret_cast<Launch*>(object)->miss);
  return 0;
}

void launch_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<Launch*>(object);
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  Py_CLEAR(self->kernel);
  Py_CLEAR(self->miss);
  delete self->specs;
  delete self->tensors;
  delete self->written;
  delete self->ints;
  delete self->ties;
  delete self->same;
  delete self->apart;
  type->tp_free(object);
  Py_DECREF(type);
}

PyMemberDef launch_members[] = {
    {"kernel", T_OBJECT, offsetof(Launch, kernel), READONLY, nullptr},
    {"miss", T_OBJECT, offsetof(Launch, miss), READONLY, nullptr},
    {"__vectorcalloffset__",
     T_PYSSIZET,
     offsetof(Launch, vectorcall),
     READONLY,
     nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot launch_slots[] = {
    {Py_tp_doc,
     const_cast<char*>(
         "Launch(kernel, specs, tensors, ints, ties, written, same, miss, "
         "apart=())\n--\n\n"
         "Called with values: runs the kernel if they are as the specs say, "
         "else calls miss with them.")},
    {Py_tp_new, reinterpret_cast<void*>(&launch_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(&launch_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(&launch_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(&launch_clear)},
    {Py_tp_call, reinterpret_cast<void*>(&PyVectorcall_Call)},
    {Py_tp_members, launch_members},
    {0, nullptr}};

PyType_Spec launch_spec = {
    "torch_helion._C.Launch",
    sizeof(Launch),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
        Py_TPFLAGS_IMMUTABLETYPE,
    launch_slots};

} // namespace

PyObject* make_match_type() {
  return PyType_FromSpec(&match_spec);
}

PyObject* make_launch_type() {
  return PyType_FromSpec(&launch_spec);
}

} // namespace torch_helion
