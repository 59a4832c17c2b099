// The best of many scores.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>

#include "rows.hpp"

namespace hone {

constexpr double lowest = -std::numeric_limits<double>::infinity();

// A score that the n best of m very likely reach, and few others: guessed from a sample at equal distances.
inline double guess_least(const double* scores, std::size_t m, std::size_t n) {
    constexpr std::size_t n_sampled = 256;
    const double expected = static_cast<double>(n) * n_sampled / static_cast<double>(m);
    const auto last = static_cast<std::ptrdiff_t>(expected + 3.0 * std::sqrt(expected) + 3.0);
    if (m < n_sampled || last >= static_cast<std::ptrdiff_t>(n_sampled)) return lowest;
    std::vector<double> sample(n_sampled);
    for (std::size_t i = 0; i < n_sampled; ++i) {
        const double score = scores[i * m / n_sampled];
        sample[i] = std::isnan(score) ? lowest : score;
    }
    std::nth_element(sample.begin(), sample.begin() + last, sample.end(), std::greater<>());
    return sample[static_cast<std::size_t>(last)];
}

// Places of the n largest of m, largest first, equal ones by rising label, or by place without labels; NaN is left out.
// What the guess leaves out is never looked at again: to select from all takes several times as long.
inline std::vector<std::int64_t> find_best(const double* scores, const std::int64_t* labels, std::size_t m,
                                           std::size_t n) {
    const auto n_reaching = [&](double least) {
        return static_cast<std::size_t>(std::count_if(scores, scores + m, [least](double s) { return s >= least; }));
    };
    double least = guess_least(scores, m, n);
    std::size_t n_left = n_reaching(least);
    if (n_left < n) {
        least = lowest;
        n_left = n_reaching(least);
    }
    n = std::min(n, n_left);
    struct Ranked {
        double score;
        std::int64_t label, place;
    };
    // One more than there are: each is written, and stays if it is one of them. A branch would be guessed wrong often.
    std::vector<Ranked> ranked(n_left + 1);
    std::size_t n_ranked = 0;
    for (std::size_t i = 0; i < m; ++i) {
        const auto place = static_cast<std::int64_t>(i);
        ranked[n_ranked] = {scores[i], labels ? labels[i] : place, place};
        n_ranked += scores[i] >= least;
    }
    const auto is_before = [](const Ranked& a, const Ranked& b) {
        return a.score > b.score || (a.score == b.score && a.label < b.label);
    };
    const auto last = ranked.begin() + static_cast<std::ptrdiff_t>(n);
    if (n < n_left) std::nth_element(ranked.begin(), last, ranked.end() - 1, is_before);
    std::sort(ranked.begin(), last, is_before);
    std::vector<std::int64_t> places(n);
    for (std::size_t i = 0; i < n; ++i) places[i] = ranked[i].place;
    return places;
}

inline py::array_t<std::int64_t> best(const Array<double>& scores, std::size_t n,
                                      const std::optional<Array<std::int64_t>>& labels) {
    if (labels && labels->size() != scores.size()) throw std::invalid_argument("every score needs a label");
    std::vector<std::int64_t> places;
    {
        // A thread ranks the whole catalogue while requests are answered.
        const py::gil_scoped_release release;
        places = find_best(scores.data(), labels ? labels->data() : nullptr, static_cast<std::size_t>(scores.size()), n);
    }
    return to_array(places);
}

}  // namespace hone
