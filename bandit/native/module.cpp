// The Python face of the native kernels; `bandit/_native.pyi` has the types, the modules that call it the meaning.
#include <pybind11/stl.h>

#include "boosts.hpp"
#include "features.hpp"
#include "mixtures.hpp"
#include "philox.hpp"
#include "scorer.hpp"
#include "slate.hpp"
#include "weight_set.hpp"

namespace py = pybind11;
using namespace hone;

namespace {

std::optional<py::array_t<bool>> mask_of(const Limit& limit) {
    const auto* mask = limit.mask();
    return mask ? std::optional(to_mask(*mask)) : std::nullopt;
}

SlotView view_of(const Float64s& scores, const Array<bool>& allowed, std::size_t shortlist) {
    if (scores.size() != allowed.size()) throw std::invalid_argument("scores and allowed must agree");
    return view_slot(share(std::vector<double>(scores.data(), scores.data() + scores.size())),
                     share(std::vector<double>(scores.size(), 0.0)),
                     std::vector<std::uint8_t>(allowed.data(), allowed.data() + allowed.size()), shortlist);
}

Mixture mixture_of(double greedy, const Float64s& shortlist, double uniform) {
    return {greedy, share(std::vector<double>(shortlist.data(), shortlist.data() + shortlist.size())), uniform};
}

py::dict parts_of(const SlotPmf& here, std::int64_t action) {
    const Parts parts = here.parts(action);
    py::dict found;
    found["greedy"] = parts.greedy;
    found["shortlist"] = parts.shortlist;
    found["uniform"] = parts.uniform;
    return found;
}

// The element of a candidate of this slot.
double at(const Shared<double>& values, std::int64_t action) {
    check_action(action, values->size());
    return (*values)[action];
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Kernels of features, of scoring, of the slate draw and of learning.";
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
        .def(py::init<const Array<float>&, const std::optional<Float64s>&, const std::optional<Array<bool>>&,
                      std::vector<std::shared_ptr<Limit>>,
                      std::vector<std::shared_ptr<Likeness>>>(),
             py::kw_only(), py::arg("scores"), py::arg("fixed_boosts"), py::arg("is_open"), py::arg("limits"),
             py::arg("likenesses"))
        .def("place", &SlateState::place, py::arg("action"))
        .def("view", &SlateState::view, py::arg("shortlist"))
        .def("only", &SlateState::only, py::arg("action"))
        .def_property_readonly("placed", &SlateState::placed);
    py::class_<SlotView>(m, "SlotView")
        .def_property_readonly("scores", [](const SlotView& view) { return read_only(view.scores); })
        .def_property_readonly("allowed", [](const SlotView& view) { return read_only<std::uint8_t, bool>(view.allowed); })
        .def_readonly("n_allowed", &SlotView::n_allowed)
        .def_property_readonly("greedy", [](const SlotView& view) { return read_only(view.greedy); })
        .def_property_readonly("top", [](const SlotView& view) { return read_only(view.top); })
        .def_property_readonly("top_scores", [](const SlotView& view) { return to_array(view.top_scores()); })
        .def_readwrite("explorer_pmf", &SlotView::explorer_pmf);
    py::class_<Mixture>(m, "Mixture")
        .def(py::init(&mixture_of), py::kw_only(), py::arg("greedy"), py::arg("shortlist"), py::arg("uniform"))
        .def_readonly("greedy", &Mixture::greedy)
        .def_property_readonly("shortlist", [](const Mixture& mixture) { return read_only(mixture.shortlist); })
        .def_readonly("uniform", &Mixture::uniform);
    py::class_<SlotPmf, std::shared_ptr<SlotPmf>>(m, "SlotPmf")
        .def(py::init<SlotView, Mixture, std::string, bool, py::tuple>(), py::arg("view"), py::arg("mixture"),
             py::arg("placed_by"), py::arg("is_discovery"), py::arg("gave_way"))
        .def_readonly("view", &SlotPmf::view)
        .def_readonly("mixture", &SlotPmf::mixture)
        .def_property_readonly("pmf", [](const SlotPmf& here) { return read_only(here.pmf); })
        .def_property_readonly("boosts", [](const SlotPmf& here) { return read_only(here.view.boosts); })
        .def_readonly("placed_by", &SlotPmf::placed_by)
        .def_readonly("is_discovery", &SlotPmf::is_discovery)
        .def_readonly("gave_way", &SlotPmf::gave_way)
        .def_property_readonly("explorer_pmf", [](const SlotPmf& here) { return here.view.explorer_pmf; })
        .def_property_readonly("explore_propensity", &SlotPmf::explore_propensity)
        .def("parts", &parts_of, py::arg("action"));
    py::class_<SlotDraw>(m, "SlotDraw")
        .def_readonly("slot", &SlotDraw::slot)
        .def_readonly("action", &SlotDraw::action)
        .def_readonly("uniform", &SlotDraw::uniform)
        .def_readonly("cumulative_before", &SlotDraw::cumulative_before)
        .def_readonly("branch", &SlotDraw::branch)
        .def_property_readonly("here", [](const SlotDraw& draw) { return draw.here; })
        .def_property_readonly("propensity", [](const SlotDraw& draw) { return at(draw.here->pmf, draw.action); })
        .def_property_readonly("boost", [](const SlotDraw& draw) { return at(draw.here->view.boosts, draw.action); })
        .def_property_readonly("is_greedy", [](const SlotDraw& draw) { return draw.here->is_greedy(draw.action); })
        .def_property_readonly("n_allowed", [](const SlotDraw& draw) { return draw.here->view.n_allowed; })
        .def_property_readonly("best", [](const SlotDraw& draw) { return draw.here->view.greedy->front(); })
        .def_property_readonly("n_best", [](const SlotDraw& draw) { return draw.here->view.greedy->size(); })
        .def_property_readonly("reason", &SlotDraw::reason);
    py::class_<WeightSet>(m, "WeightSet")
        .def(py::init<unsigned, std::uint32_t>(), py::kw_only(), py::arg("bits"), py::arg("prime"))
        .def("add", &WeightSet::add, py::arg("features"), py::arg("interactions"))
        .def("positions", &WeightSet::positions)
        .def("clear", &WeightSet::clear);
    m.def("freshness", &freshness, py::arg("available_ms"), py::kw_only(), py::arg("now_ms"), py::arg("boost"),
          py::arg("half_life_ms"));
    m.def("finite_product", &finite_product, py::arg("column"), py::kw_only(), py::arg("weight"));
    m.def("all_finite",
          [](const Array<float>& values) {
              return std::all_of(values.data(), values.data() + values.size(), [](float x) { return std::isfinite(x); });
          },
          py::arg("values"));
    m.def("view_slot", &view_of, py::arg("scores"), py::arg("allowed"), py::kw_only(), py::arg("shortlist"));
    // By position: reading names takes longer than mixing.
    m.def("softmax_mixture", &softmax_mixture);
    m.def("inverse_gap_mixture", &inverse_gap_mixture);
    m.def("build_pmf", [](const SlotView& view, const Mixture& mixture) { return to_array(build_pmf(view, mixture)); },
          py::arg("view"), py::arg("mixture"));
    m.def("draw_slot", &draw_slot);
    m.def("feature_index",
          [](std::uint32_t seed, const py::str& name) { return feature_index(seed, utf8(name.ptr())); },
          py::arg("seed"), py::arg("name"));
    m.def("encode_features", &encode_features, py::arg("seed"), py::arg("features"));
    m.def("philox_uniforms",
          [](const py::bytes& key, std::size_t n) { return philox_uniforms(std::string_view(key), n); }, py::arg("key"),
          py::arg("n"));
    m.def("score_actions", &score_actions, py::arg("weights").noconvert(), py::kw_only(), py::arg("constant_index"),
          py::arg("prime"), py::arg("shared"), py::arg("actions"));
}
