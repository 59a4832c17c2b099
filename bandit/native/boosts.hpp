// What rules add to the scores of all candidates alike, whatever was placed before.
#pragma once

#include <cmath>

#include "limits.hpp"

namespace hone {

// boost * 2^(-age / half-life); 0 where the time, unix milliseconds, is 0 for unknown.
inline py::array_t<double> freshness(const Array<std::int64_t>& available_ms, std::int64_t now_ms, double boost,
                                     double half_life_ms) {
    py::array_t<double> boosts(available_ms.size());
    double* out = boosts.mutable_data();
    const std::int64_t* available = available_ms.data();
    for (py::ssize_t i = 0; i < available_ms.size(); ++i) {
        const double age_ms = std::max(static_cast<double>(now_ms) - static_cast<double>(available[i]), 0.0);
        out[i] = available[i] == 0 ? 0.0 : boost * std::exp2(-age_ms / half_life_ms);
    }
    return boosts;
}

// weight * value; 0 where that is not finite.
inline py::array_t<double> finite_product(const Array<double>& column, double weight) {
    py::array_t<double> boosts(column.size());
    double* out = boosts.mutable_data();
    for (py::ssize_t i = 0; i < column.size(); ++i) {
        const double product = weight * column.data()[i];
        out[i] = std::isfinite(product) ? product : 0.0;
    }
    return boosts;
}

}  // namespace hone
