// The Python face of the native kernels; `retrieval/_native.pyi` has the types, the modules that call it the meaning.
#include <pybind11/stl.h>

#include "best.hpp"
#include "blend.hpp"
#include "eligibility.hpp"

namespace py = pybind11;
using namespace hone;

PYBIND11_MODULE(_native, m) {
    m.doc() = "Kernels of eligibility, of the blend and of rankings.";
    m.def("eligible",
          [](const Rows& rows, Array<bool> listed, Array<std::int64_t> available_ms, Array<std::int64_t> expires_ms,
             py::array_t<bool> allowed, Array<std::int16_t> min_age, std::int64_t now_ms,
             std::optional<std::int64_t> age, std::int16_t unknown_age, std::int64_t unknown_needs,
             const Rows& hidden) {
              const Eligibility columns{std::move(listed), std::move(available_ms), std::move(expires_ms),
                                        std::move(allowed), std::move(min_age)};
              return eligible(rows, columns, now_ms, age, unknown_age, unknown_needs, hidden);
          },
          py::arg("rows"), py::kw_only(), py::arg("listed"), py::arg("available_ms"), py::arg("expires_ms"),
          py::arg("allowed"), py::arg("min_age"), py::arg("now_ms"), py::arg("age"), py::arg("unknown_age"),
          py::arg("unknown_needs"), py::arg("hidden"));
    m.def("blend", &blend, py::arg("rows"), py::arg("scores"), py::arg("quotas"), py::arg("limit"));
    m.def("best", &best, py::arg("scores"), py::arg("n"), py::kw_only(), py::arg("labels") = py::none());
}
