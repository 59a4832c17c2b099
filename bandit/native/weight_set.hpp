// A set of positions in a model's weight table: what learning has touched.
#pragma once

#include <algorithm>
#include <utility>

#include "limits.hpp"

namespace hone {

class WeightSet {
public:
    WeightSet(unsigned bits, std::uint32_t prime)
        : mask_((std::size_t{1} << check(bits)) - 1), prime_(prime), has_(mask_ + 1, false) {}

    // Add the weights of features, and of every pair of a feature of an interaction's first array with one of its
    // second. uint32 arithmetic wraps; the mask keeps only low bits, so VW's 64-bit hash agrees.
    void add(const std::vector<Array<std::uint32_t>>& features,
             const std::vector<std::pair<Array<std::uint32_t>, Array<std::uint32_t>>>& interactions) {
        for (const auto& indices : features)
            for (py::ssize_t i = 0; i < indices.size(); ++i) put(indices.data()[i]);
        for (const auto& [firsts, seconds] : interactions)
            for (py::ssize_t k = 0; k < firsts.size(); ++k) {
                const std::uint32_t half = firsts.data()[k] * prime_;
                for (py::ssize_t i = 0; i < seconds.size(); ++i) put(half ^ seconds.data()[i]);
            }
    }

    // uint32, ascending.
    py::array_t<std::uint32_t> positions() {
        std::sort(positions_.begin(), positions_.end());
        return to_array(positions_);
    }

    void clear() {
        for (const std::uint32_t position : positions_) has_[position] = false;
        positions_.clear();
    }

private:
    static unsigned check(unsigned bits) {
        if (bits > 32) throw std::invalid_argument("a table has at most 2^32 weights");
        return bits;
    }

    void put(std::uint32_t index) {
        const auto position = static_cast<std::uint32_t>(index & mask_);
        if (has_[position]) return;
        has_[position] = true;
        positions_.push_back(position);
    }

    std::size_t mask_;
    std::uint32_t prime_;
    std::vector<bool> has_;
    std::vector<std::uint32_t> positions_;
};

}  // namespace hone
