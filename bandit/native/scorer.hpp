// Costs of a linear model with pairwise interactions, straight from its weight table.
#pragma once

#include "limits.hpp"

namespace hone {

// Add what one namespace of n actions, uint32 and float32 [n, f], brings to their costs, float64 [n]: every feature's
// own weight, and its weight with each of m shared features, uint32 [m] (already multiplied for hashing) and float32 [m].
// uint32 arithmetic wraps; the mask keeps only low bits, so VW's 64-bit hash agrees.
inline void add_costs(Array<double> costs, const Array<float>& weights, const Array<std::uint32_t>& indices,
                      const Array<float>& values, const Array<std::uint32_t>& halves,
                      const Array<float>& shared_values) {
    if (indices.ndim() != 2 || values.ndim() != 2 || costs.ndim() != 1 || indices.shape(0) != costs.shape(0) ||
        values.shape(0) != indices.shape(0) || values.shape(1) != indices.shape(1) ||
        halves.size() != shared_values.size())
        throw std::invalid_argument("costs [n], indices and values [n, f], halves and shared_values [m] must agree");
    const std::uint32_t mask = static_cast<std::uint32_t>(weights.size()) - 1;
    if (weights.size() == 0 || (weights.size() & mask)) throw std::invalid_argument("a table holds 2^bits weights");
    const std::size_t n = indices.shape(0), f = indices.shape(1), m = halves.size();
    const float *table = weights.data(), *own = values.data(), *with = shared_values.data();
    const std::uint32_t *index = indices.data(), *half = halves.data();
    double* cost = costs.mutable_data();
    constexpr std::size_t ahead = 4;  // Features whose weights are asked for before they are needed.
    const std::size_t n_features = n * f;
    for (std::size_t at = 0; at < n_features; ++at) {
        if (at + ahead < n_features && own[at + ahead] != 0.0F) {
            const std::uint32_t next = index[at + ahead];
            __builtin_prefetch(table + (next & mask));
            for (std::size_t k = 0; k < m; ++k) __builtin_prefetch(table + ((half[k] ^ next) & mask));
        }
        if (own[at] == 0.0F) continue;
        double total = table[index[at] & mask];
        for (std::size_t k = 0; k < m; ++k)
            total += static_cast<double>(with[k]) * static_cast<double>(table[(half[k] ^ index[at]) & mask]);
        cost[at / f] += total * static_cast<double>(own[at]);
    }
}

}  // namespace hone
