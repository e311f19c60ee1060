#pragma once

// How C++ exceptions become Python exceptions. Every function that Python
// calls runs its body through guarded(): an exception that leaves a C entry
// point would end the process.

#include <Python.h>

#include <c10/util/Exception.h>

#include <exception>
#include <memory>
#include <new>
#include <utility>

namespace torch_helion {

struct PyRefDeleter {
  void operator()(PyObject* object) const {
    Py_XDECREF(object);
  }
};
// An owned reference.
using PyRef = std::unique_ptr<PyObject, PyRefDeleter>;

inline void set_python_error() noexcept {
  try {
    throw;
  } catch (const c10::IndexError& e) {
    PyErr_SetString(PyExc_IndexError, e.what_without_backtrace());
  } catch (const c10::ValueError& e) {
    PyErr_SetString(PyExc_ValueError, e.what_without_backtrace());
  } catch (const c10::TypeError& e) {
    PyErr_SetString(PyExc_TypeError, e.what_without_backtrace());
  } catch (const c10::NotImplementedError& e) {
    PyErr_SetString(PyExc_NotImplementedError, e.what_without_backtrace());
  } catch (const c10::Error& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& e) {
    // torch throws an exception of its own after it has set Python's error.
    if (!PyErr_Occurred()) {
      PyErr_SetString(PyExc_RuntimeError, e.what());
    }
  } catch (...) {
    if (!PyErr_Occurred()) {
      PyErr_SetString(PyExc_RuntimeError, "torch_helion: unknown exception");
    }
  }
}

// Runs body, which returns a new reference or nullptr with an error set.
template <class Body>
inline PyObject* guarded(Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

} // namespace torch_helion
