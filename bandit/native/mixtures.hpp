// How the policies split the mass of a slot's shortlist.
#pragma once

#include <cmath>

#include "slot.hpp"

namespace hone {

// The linearly interpolated quantile of descending scores.
inline double quantile(const std::vector<double>& descending, double share) {
    const std::size_t n = descending.size();
    const double place = share * static_cast<double>(n - 1);
    const double below = std::floor(place);
    const std::size_t low_index = n - 1 - static_cast<std::size_t>(below);
    const double low = descending[low_index], high = descending[low_index ? low_index - 1 : 0];
    return low + (high - low) * (place - below);
}

// `mass` times exp((s - best) / temperature), normalised; without a temperature it is the interquartile range of the
// scores, and where that is 0 all are alike.
inline Mixture softmax_mixture(const SlotView& view, double greedy, double mass, double uniform,
                               std::optional<double> temperature) {
    std::vector<double> weights = view.top_scores();
    const std::size_t n = weights.size();
    if (n == 0) return {greedy, share(std::move(weights)), uniform};
    const double tau = temperature ? *temperature : quantile(weights, 0.75) - quantile(weights, 0.25);
    if (tau <= 0.0) {
        weights.assign(n, mass * (1.0 / static_cast<double>(n)));
    } else {
        const double best = weights.front();
        double total = 0.0;
        for (double& weight : weights) total += weight = std::exp((weight - best) / tau);
        for (double& weight : weights) weight = mass * (weight / total);
    }
    return {greedy, share(std::move(weights)), uniform};
}

// 1 / (m + gamma (best - s)) for what is not best, what remains for the best, all times 1 - uniform.
inline Mixture inverse_gap_mixture(const SlotView& view, double gamma, double uniform) {
    std::vector<double> masses = view.top_scores();
    const double best = masses.empty() ? 0.0 : masses.front(), m = static_cast<double>(masses.size());
    const std::size_t n_best = static_cast<std::size_t>(std::count(masses.begin(), masses.end(), best));
    for (double& mass : masses) mass = 1.0 / (m + gamma * (best - mass));
    const double rest = pairwise_sum(masses.data() + n_best, masses.size() - n_best);
    std::fill_n(masses.begin(), n_best, (1.0 - rest) / static_cast<double>(n_best));
    for (double& mass : masses) mass *= 1.0 - uniform;
    return {0.0, share(std::move(masses)), uniform};
}

}  // namespace hone
