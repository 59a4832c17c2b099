// The Python face of the native kernels; `bandit/_native.pyi` has the types, the modules that call it the meaning.
#include <pybind11/stl.h>

#include "boosts.hpp"
#include "scorer.hpp"
#include "slot.hpp"
#include "weight_set.hpp"

namespace py = pybind11;
using namespace hone;

namespace {

std::optional<py::array_t<bool>> mask_of(const Limit& limit) {
    const auto* mask = limit.mask();
    return mask ? std::optional(to_mask(*mask)) : std::nullopt;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Kernels of the slate draw, of scoring and of learning.";
    py::class_<Limit, std::shared_ptr<Limit>>(m, "Limit")
        .def("place", &Limit::place, py::arg("action"))
        .def_property_readonly("mask", &mask_of);
    py::class_<CategoryLimit, Limit, std::shared_ptr<CategoryLimit>>(m, "CategoryLimit")
        .def(py::init<Array<std::int32_t>, std::int32_t, std::size_t, std::size_t>(), py::arg("codes"), py::kw_only(),
             py::arg("no_code"), py::arg("limit"), py::arg("window"));
    py::class_<TagLimit, Limit, std::shared_ptr<TagLimit>>(m, "TagLimit")
        .def(py::init<Array<std::uint64_t>, std::size_t, std::size_t>(), py::arg("tags"), py::kw_only(),
             py::arg("limit"), py::arg("window"));
    py::class_<PoolLimit, Limit, std::shared_ptr<PoolLimit>>(m, "PoolLimit")
        .def(py::init<Array<bool>, std::vector<std::int64_t>>(), py::arg("pool"), py::kw_only(), py::arg("positions"));
    py::class_<Likeness, std::shared_ptr<Likeness>>(m, "Likeness")
        .def(py::init<Array<std::uint64_t>, double>(), py::arg("tags"), py::kw_only(), py::arg("weight"))
        .def("place", &Likeness::place, py::arg("action"))
        .def_property_readonly("boost", [](const Likeness& likeness) { return to_array(likeness.boost()); });
    py::class_<SlateState>(m, "SlateState")
        .def(py::init<Float64s, Float64s, Array<bool>, std::vector<std::shared_ptr<Limit>>,
                      std::vector<std::shared_ptr<Likeness>>>(),
             py::kw_only(), py::arg("scores"), py::arg("fixed_boosts"), py::arg("is_open"), py::arg("limits"),
             py::arg("likenesses"))
        .def("place", &SlateState::place, py::arg("action"))
        .def("view", &SlateState::view, py::arg("shortlist"))
        .def_property_readonly("boosts", &SlateState::boosts)
        .def_property_readonly("boosted", &SlateState::boosted);
    py::class_<WeightSet>(m, "WeightSet")
        .def(py::init<unsigned, std::uint32_t>(), py::kw_only(), py::arg("bits"), py::arg("prime"))
        .def("add", &WeightSet::add, py::arg("features"), py::arg("interactions"))
        .def("positions", &WeightSet::positions)
        .def("clear", &WeightSet::clear);
    m.def("freshness", &freshness, py::arg("available_ms"), py::kw_only(), py::arg("now_ms"), py::arg("boost"),
          py::arg("half_life_ms"));
    m.def("finite_product", &finite_product, py::arg("column"), py::kw_only(), py::arg("weight"));
    m.def("rank_best",
          [](const Float64s& scores, const Array<bool>& allowed, std::size_t shortlist) {
              if (scores.size() != allowed.size()) throw std::invalid_argument("scores and allowed must agree");
              return rank_best(scores.data(), allowed.data(), scores.size(), shortlist);
          },
          py::arg("scores"), py::arg("allowed"), py::arg("shortlist"));
    m.def("build_pmf", &build_pmf, py::arg("allowed"), py::arg("n_allowed"), py::arg("greedy"), py::arg("top"),
          py::arg("greedy_mass"), py::arg("masses"), py::arg("uniform"));
    m.def("draw_action", &draw_action, py::arg("pmf"), py::arg("uniform"));
    m.def("softmax", &softmax, py::arg("descending"), py::arg("temperature"));
    m.def("add_costs", &add_costs, py::arg("costs").noconvert(), py::arg("weights").noconvert(), py::arg("indices"),
          py::arg("values"), py::arg("halves"), py::arg("shared_values"));
}
