// One slot: what it may hold and what is best of it, its pmf, and the draw. The numbers are float64 and are added in a
// fixed order, so that a decision replays bit for bit.
#pragma once

#include <cmath>
#include <memory>
#include <optional>

#include "limits.hpp"

namespace hone {

using Float64s = Array<double>;
using Int64s = Array<std::int64_t>;

struct Ranked {
    double score;
    std::int64_t action;
};

// The best actions of those allowed: all that tie for best in id order, and the `shortlist` best, ties in id order.
inline std::pair<py::array_t<std::int64_t>, py::array_t<std::int64_t>> rank_best(
    const double* scores, const bool* allowed, std::size_t n, std::size_t shortlist) {
    std::vector<Ranked> ranked(n);
    std::size_t n_ranked = 0;
    for (std::size_t i = 0; i < n; ++i) {
        ranked[n_ranked] = {scores[i], static_cast<std::int64_t>(i)};
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
    py::array_t<std::int64_t> top(static_cast<py::ssize_t>(n_top));
    std::int64_t* out = top.mutable_data();
    for (std::size_t i = 0; i < n_top; ++i) out[i] = ranked[i].action;
    return {to_array(greedy), top};
}

// The slate so far. `view` says what the next slot may hold; `place` fills it.
class SlateState {
public:
    SlateState(Float64s scores, Float64s fixed_boosts, Array<bool> open, std::vector<std::shared_ptr<Limit>> limits,
               std::vector<std::shared_ptr<Likeness>> likenesses)
        : scores_(std::move(scores)), fixed_(std::move(fixed_boosts)), boosts_(fixed_),
          open_(open.data(), open.data() + open.size()), limits_(std::move(limits)),
          likenesses_(std::move(likenesses)) {
        bool fits = fixed_.size() == scores_.size() && open.size() == scores_.size();
        for (const auto& limit : limits_) fits = fits && limit->size() == open_.size();
        for (const auto& likeness : likenesses_) fits = fits && likeness->size() == open_.size();
        if (!fits) throw std::invalid_argument("all arrays of a slate must be as long as its scores");
        boosted_ = sum(scores_.data(), boosts_.data());
    }

    void place(std::int64_t action) {
        check_action(action, open_.size());
        open_[action] = 0;
        pending_.push_back(action);
    }

    py::array_t<double> boosts() {
        note_placed();
        return boosts_;
    }

    py::array_t<double> boosted() {
        note_placed();
        return boosted_;
    }

    // (allowed, how many, greedy, top, how many limits gave way), none when no candidate is left; the limit declared
    // last gives way first.
    std::optional<std::tuple<py::array_t<bool>, std::size_t, py::array_t<std::int64_t>, py::array_t<std::int64_t>,
                             std::vector<std::size_t>>>
    view(std::size_t shortlist) {
        note_placed();
        const std::size_t n = open_.size();
        if (std::find(open_.begin(), open_.end(), 1) == open_.end()) return std::nullopt;
        std::vector<std::size_t> asking, gave_way;
        for (std::size_t k = 0; k < limits_.size(); ++k)
            if (limits_[k]->mask()) asking.push_back(k);
        py::array_t<bool> allowed(static_cast<py::ssize_t>(n));
        bool* may = allowed.mutable_data();
        std::size_t n_allowed = 0;
        for (;;) {
            std::copy(open_.begin(), open_.end(), may);
            for (const std::size_t k : asking) {
                const std::uint8_t* mask = limits_[k]->mask()->data();
                for (std::size_t i = 0; i < n; ++i) may[i] = may[i] && mask[i];
            }
            n_allowed = static_cast<std::size_t>(std::count(may, may + n, true));
            if (n_allowed || asking.empty()) break;
            gave_way.push_back(asking.back());
            asking.pop_back();
        }
        auto [greedy, top] = rank_best(boosted_.data(), may, n, shortlist);
        return std::make_tuple(allowed, n_allowed, greedy, top, gave_way);
    }

private:
    // Only when the next slot is asked for: nothing follows the last one.
    void note_placed() {
        if (pending_.empty()) return;
        for (const std::int64_t action : pending_) {
            for (const auto& limit : limits_) limit->place(action);
            for (const auto& likeness : likenesses_) likeness->place(action);
        }
        pending_.clear();
        if (likenesses_.empty()) return;
        // New arrays: those of the slot before were given away.
        boosts_ = fixed_;
        for (const auto& likeness : likenesses_) boosts_ = sum(boosts_.data(), likeness->boost().data());
        boosted_ = sum(scores_.data(), boosts_.data());
    }

    py::array_t<double> sum(const double* one, const double* other) const {
        const std::size_t n = open_.size();
        py::array_t<double> total(static_cast<py::ssize_t>(n));
        double* out = total.mutable_data();
        for (std::size_t i = 0; i < n; ++i) out[i] = one[i] + other[i];
        return total;
    }

    Float64s scores_, fixed_;
    py::array_t<double> boosts_, boosted_;
    std::vector<std::uint8_t> open_;
    std::vector<std::shared_ptr<Limit>> limits_;
    std::vector<std::shared_ptr<Likeness>> likenesses_;
    std::vector<std::int64_t> pending_;
};

inline py::array_t<double> build_pmf(const Array<bool>& allowed, std::size_t n_allowed, const Int64s& greedy,
                                     const Int64s& top, double greedy_mass, const Float64s& masses, double uniform) {
    if (masses.size() != top.size()) throw std::invalid_argument("a shortlist needs one mass an action");
    const std::size_t n = allowed.size();
    py::array_t<double> pmf(static_cast<py::ssize_t>(n));
    double* p = pmf.mutable_data();
    const double floor = uniform / static_cast<double>(n_allowed);
    for (std::size_t i = 0; i < n; ++i) p[i] = allowed.data()[i] ? floor : 0.0;
    for (py::ssize_t i = 0; i < top.size(); ++i) {
        check_action(top.data()[i], n);
        p[top.data()[i]] = floor + masses.data()[i];
    }
    const double share = greedy_mass / static_cast<double>(greedy.size());
    for (py::ssize_t i = 0; i < greedy.size(); ++i) {
        check_action(greedy.data()[i], n);
        p[greedy.data()[i]] += share;
    }
    return pmf;
}

// (action, cumulative probability before it) by inverse CDF. What is not allowed adds nothing, so the first sum above
// the uniform is at an allowed action; the last sum may fall short of 1 by rounding, and ends on the last possible one.
inline std::pair<std::int64_t, double> draw_action(const Float64s& pmf, double uniform) {
    double total = 0.0, before_last = 0.0;
    std::int64_t last = -1;
    for (py::ssize_t i = 0; i < pmf.size(); ++i) {
        const double p = pmf.data()[i];
        if (p == 0.0) continue;
        last = i;
        before_last = total;
        total += p;
        if (total > uniform) break;
    }
    if (last < 0) throw std::invalid_argument("a pmf must have an action with probability");
    return {last, before_last};
}

// The linearly interpolated quantile of descending scores.
inline double quantile(const double* descending, std::size_t n, double share) {
    const double place = share * static_cast<double>(n - 1);
    const double below = std::floor(place);
    const std::size_t low_index = n - 1 - static_cast<std::size_t>(below);
    const double low = descending[low_index], high = descending[low_index ? low_index - 1 : 0];
    return low + (high - low) * (place - below);
}

// exp((s - best) / temperature), normalised; without a temperature it is the interquartile range of the scores, and
// where that is 0 all are alike.
inline py::array_t<double> softmax(const Float64s& descending, std::optional<double> temperature) {
    const std::size_t n = descending.size();
    py::array_t<double> weights(static_cast<py::ssize_t>(n));
    if (n == 0) return weights;
    const double* scores = descending.data();
    double* out = weights.mutable_data();
    const double tau = temperature ? *temperature : quantile(scores, n, 0.75) - quantile(scores, n, 0.25);
    if (tau <= 0.0) {
        std::fill(out, out + n, 1.0 / static_cast<double>(n));
        return weights;
    }
    double total = 0.0;
    for (std::size_t i = 0; i < n; ++i) total += out[i] = std::exp((scores[i] - scores[0]) / tau);
    for (std::size_t i = 0; i < n; ++i) out[i] /= total;
    return weights;
}

}  // namespace hone
