// One slot: what it may hold and what is best of it, its pmf as a mixture of three parts, and the draw. The numbers are
// float64 and are added in a fixed order, so that a decision replays bit for bit.
#pragma once

#include <memory>
#include <optional>

#include "limits.hpp"

namespace hone {

using Float64s = Array<double>;
using Int64s = Array<std::int64_t>;

// What several owners read and nobody changes.
template <typename T>
using Shared = std::shared_ptr<const std::vector<T>>;

template <typename T>
Shared<T> share(std::vector<T> values) {
    return std::make_shared<const std::vector<T>>(std::move(values));
}

// A read-only array over shared memory, not copied.
template <typename T, typename Element = T>
py::array_t<Element> read_only(const Shared<T>& values) {
    static_assert(sizeof(T) == sizeof(Element));
    const py::capsule owner(new Shared<T>(values), [](void* held) { delete static_cast<Shared<T>*>(held); });
    py::array_t<Element> array(static_cast<py::ssize_t>(values->size()),
                               reinterpret_cast<const Element*>(values->data()), owner);
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return array;
}

// The sum in the order in which numpy adds float64: eight running sums of blocks of at most 128, halves above.
inline double pairwise_sum(const double* values, std::size_t n) {
    if (n < 8) {
        double total = 0.0;
        for (std::size_t i = 0; i < n; ++i) total += values[i];
        return total;
    }
    if (n <= 128) {
        double sums[8];
        std::copy(values, values + 8, sums);
        std::size_t i = 8;
        for (; i + 8 <= n; i += 8)
            for (std::size_t k = 0; k < 8; ++k) sums[k] += values[i + k];
        double total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
        for (; i < n; ++i) total += values[i];
        return total;
    }
    const std::size_t half = n / 2 - n / 2 % 8;
    return pairwise_sum(values, half) + pairwise_sum(values + half, n - half);
}

// What a policy sees of one slot: candidates in id order, the best of those allowed, the shortlist best first.
struct SlotView {
    Shared<double> scores, boosts;
    Shared<std::uint8_t> allowed;
    std::size_t n_allowed;
    Shared<std::int64_t> greedy, top;
    std::optional<Float64s> explorer_pmf;

    std::vector<double> top_scores() const {
        std::vector<double> found(top->size());
        for (std::size_t i = 0; i < found.size(); ++i) found[i] = (*scores)[(*top)[i]];
        return found;
    }
    double best() const { return (*scores)[greedy->front()]; }
};

struct Ranked {
    double score;
    std::int64_t action;
};

// The view of a slot: all allowed actions that tie for best in id order, and the `shortlist` best, ties in id order.
inline SlotView view_slot(Shared<double> scores, Shared<double> boosts, std::vector<std::uint8_t> allowed,
                          std::size_t shortlist) {
    const std::size_t n = scores->size();
    std::vector<Ranked> ranked(n);
    std::size_t n_ranked = 0;
    for (std::size_t i = 0; i < n; ++i) {
        ranked[n_ranked] = {(*scores)[i], static_cast<std::int64_t>(i)};
        n_ranked += allowed[i];
    }
    if (n_ranked == 0) throw std::invalid_argument("a slot must be allowed to hold something");
    ranked.resize(n_ranked);
    double best = ranked.front().score;
    bool is_ordered = true;
    for (const Ranked& one : ranked) {
        best = one.score > best ? one.score : best;
        is_ordered = is_ordered && !std::isnan(one.score);
    }
    // Sorting them would read past the end.
    if (!is_ordered) throw std::invalid_argument("scores must be numbers, got NaN");
    std::vector<std::int64_t> greedy;
    for (const Ranked& one : ranked)
        if (one.score == best) greedy.push_back(one.action);
    const auto is_before = [](const Ranked& a, const Ranked& b) {
        return a.score > b.score || (a.score == b.score && a.action < b.action);
    };
    const std::size_t n_top = std::min(shortlist, n_ranked);
    const auto end = ranked.begin() + static_cast<std::ptrdiff_t>(n_top);
    if (n_top < n_ranked && n_top > 0) std::nth_element(ranked.begin(), end - 1, ranked.end(), is_before);
    std::sort(ranked.begin(), end, is_before);
    std::vector<std::int64_t> top(n_top);
    for (std::size_t i = 0; i < n_top; ++i) top[i] = ranked[i].action;
    return {std::move(scores), std::move(boosts), share(std::move(allowed)), n_ranked,
            share(std::move(greedy)), share(std::move(top)), std::nullopt};
}

// A mass that the tied best share, masses of the shortlist, and a mass that everything allowed shares.
struct Mixture {
    double greedy;
    Shared<double> shortlist;
    double uniform;
};

// Adds up the parts: 0 where not allowed, 1 in sum.
inline std::vector<double> build_pmf(const SlotView& view, const Mixture& mixture) {
    const std::vector<std::int64_t>&greedy = *view.greedy, &top = *view.top;
    if (mixture.shortlist->size() != top.size()) throw std::invalid_argument("a shortlist needs one mass an action");
    const std::size_t n = view.scores->size();
    std::vector<double> p(n);
    const double floor = mixture.uniform / static_cast<double>(view.n_allowed);
    for (std::size_t i = 0; i < n; ++i) p[i] = (*view.allowed)[i] ? floor : 0.0;
    for (std::size_t i = 0; i < top.size(); ++i) p[top[i]] = floor + (*mixture.shortlist)[i];
    const double share = mixture.greedy / static_cast<double>(greedy.size());
    for (const std::int64_t action : greedy) p[action] += share;
    return p;
}

// How one action's propensity adds up.
struct Parts {
    double greedy, shortlist, uniform;
};

// What slot k may hold and with which probability; `placed_by` names the placement that fills it for certain.
struct SlotPmf {
    SlotPmf(SlotView seen, Mixture mixed, std::string by, bool is_reserved, py::tuple relaxed)
        : view(std::move(seen)), mixture(std::move(mixed)), pmf(share(build_pmf(view, mixture))),
          placed_by(std::move(by)), is_discovery(is_reserved), gave_way(std::move(relaxed)) {}

    double explore_propensity() const {
        std::vector<double> greedy(view.greedy->size());
        for (std::size_t i = 0; i < greedy.size(); ++i) greedy[i] = (*pmf)[(*view.greedy)[i]];
        return std::max(0.0, 1.0 - pairwise_sum(greedy.data(), greedy.size()));
    }

    bool is_greedy(std::int64_t action) const {
        check_action(action, pmf->size());
        return (*view.scores)[action] == view.best();
    }

    Parts parts(std::int64_t action) const {
        const double greedy = is_greedy(action) ? mixture.greedy / static_cast<double>(view.greedy->size()) : 0.0;
        const double uniform = mixture.uniform / static_cast<double>(view.n_allowed);
        return {greedy, (*pmf)[action] - greedy - uniform, uniform};
    }

    SlotView view;
    Mixture mixture;
    Shared<double> pmf;
    std::string placed_by;
    bool is_discovery;
    py::tuple gave_way;
};

// One placed item and how it was drawn.
struct SlotDraw {
    std::size_t slot;
    std::int64_t action;
    double uniform, cumulative_before;
    std::string branch;
    std::shared_ptr<const SlotPmf> here;

    std::string reason() const {
        if (!here->placed_by.empty()) return here->placed_by;
        return here->is_discovery ? "discovery" : here->is_greedy(action) ? "greedy" : "explore";
    }
};

// The draw by inverse CDF. What is not allowed adds nothing, so the first sum above the uniform is at an allowed action;
// the last sum may fall short of 1 by rounding, and ends on the last possible one. For the branch, an action's stretch
// of the unit interval is cut as greedy, then uniform, then shortlist mass: the right joint law.
inline SlotDraw draw_slot(std::shared_ptr<const SlotPmf> here, std::size_t slot, double uniform) {
    double total = 0.0, before = 0.0;
    std::int64_t action = -1;
    for (std::size_t i = 0; i < here->pmf->size(); ++i) {
        const double p = (*here->pmf)[i];
        if (p == 0.0) continue;
        action = static_cast<std::int64_t>(i);
        before = total;
        total += p;
        if (total > uniform) break;
    }
    if (action < 0) throw std::invalid_argument("a pmf must have an action with probability");
    std::string branch = here->placed_by;
    if (branch.empty()) {
        const Parts parts = here->parts(action);
        const double offset = uniform - before;
        branch = offset < parts.greedy ? "greedy" : offset < parts.greedy + parts.uniform ? "uniform" : "shortlist";
    }
    return {slot, action, uniform, before, std::move(branch), std::move(here)};
}

}  // namespace hone
