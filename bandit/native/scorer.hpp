// Scores of a linear model with pairwise interactions, straight from its weight table.
#pragma once

#include "limits.hpp"

namespace hone {

// The hashed features of one example in one namespace: uint32 and float32 [m].
using Features = std::pair<Array<std::uint32_t>, Array<float>>;
// Those of n actions, uint32 and float32 [n, f], and which shared namespaces they interact with.
using CrossedFeatures = std::tuple<Array<std::uint32_t>, Array<float>, std::vector<std::size_t>>;

// The table of a model: 2^bits weights. uint32 arithmetic wraps; the mask keeps only low bits, so VW's 64-bit hash
// agrees.
class Table {
public:
    explicit Table(const Array<float>& weights)
        : weights_(weights.data()), mask_(static_cast<std::uint32_t>(weights.size()) - 1) {
        if (weights.size() == 0 || (weights.size() & mask_))
            throw std::invalid_argument("a table holds 2^bits weights");
    }
    const float* at(std::uint32_t index) const { return weights_ + (index & mask_); }

private:
    const float* weights_;
    std::uint32_t mask_;
};

// Add what one namespace of n actions brings to their costs: every feature's own weight, and its weight with each of the
// shared features, whose indices are already multiplied for hashing.
inline void add_costs(std::vector<double>& costs, const Table& table, const CrossedFeatures& actions,
                      const std::vector<std::uint32_t>& halves, const std::vector<float>& with) {
    constexpr std::size_t ahead = 4;  // Features whose weights are asked for before they are needed.
    const std::size_t f = std::get<0>(actions).shape(1), n_features = costs.size() * f, m = halves.size();
    const std::uint32_t* index = std::get<0>(actions).data();
    const float* own = std::get<1>(actions).data();
    for (std::size_t at = 0; at < n_features; ++at) {
        if (at + ahead < n_features && own[at + ahead] != 0.0F) {
            const std::uint32_t next = index[at + ahead];
            __builtin_prefetch(table.at(next));
            for (std::size_t k = 0; k < m; ++k) __builtin_prefetch(table.at(halves[k] ^ next));
        }
        if (own[at] == 0.0F) continue;
        double total = *table.at(index[at]);
        for (std::size_t k = 0; k < m; ++k)
            total += static_cast<double>(with[k]) * static_cast<double>(*table.at(halves[k] ^ index[at]));
        costs[at / f] += total * static_cast<double>(own[at]);
    }
}

// float32 [n], expected rewards: the linear terms of all features, and for the interactions the weight at
// (i_shared * prime) xor i_action. Added up in float64 and in a fixed order.
inline py::array_t<float> score_actions(const Array<float>& weights, std::uint32_t constant_index, std::uint32_t prime,
                                        const std::vector<Features>& shared,
                                        const std::vector<CrossedFeatures>& actions) {
    const Table table(weights);
    if (actions.empty()) throw std::invalid_argument("actions must have a namespace");
    const py::ssize_t n = std::get<0>(actions.front()).shape(0);
    double constant = *table.at(constant_index);
    for (const auto& [indices, values] : shared) {
        if (indices.ndim() != 1 || indices.size() != values.size())
            throw std::invalid_argument("indices and values [m] of shared features must agree");
        for (py::ssize_t i = 0; i < indices.size(); ++i)
            constant += static_cast<double>(*table.at(indices.data()[i])) * static_cast<double>(values.data()[i]);
    }
    std::vector<double> costs(n, constant);
    for (const CrossedFeatures& namespaced : actions) {
        const auto& [indices, values, crossed] = namespaced;
        if (indices.ndim() != 2 || values.ndim() != 2 || indices.shape(0) != n || values.shape(0) != n ||
            indices.shape(1) != values.shape(1))
            throw std::invalid_argument("indices and values [n, f] of every namespace of the actions must agree");
        std::vector<std::uint32_t> halves;
        std::vector<float> with;
        for (const std::size_t one : crossed) {
            const auto& [first, its_values] = shared.at(one);
            for (py::ssize_t i = 0; i < first.size(); ++i) halves.push_back(first.data()[i] * prime);
            with.insert(with.end(), its_values.data(), its_values.data() + its_values.size());
        }
        add_costs(costs, table, namespaced, halves, with);
    }
    py::array_t<float> scores(n);
    for (py::ssize_t i = 0; i < n; ++i) scores.mutable_data()[i] = static_cast<float>(0.0 - costs[i]);
    return scores;
}

}  // namespace hone
