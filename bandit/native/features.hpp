// Named features as Vowpal Wabbit hashes them (`--hash strings`).
#pragma once

#include <cmath>
#include <string_view>

#include "limits.hpp"

namespace hone {

inline std::uint32_t rotated(std::uint32_t x, int by) { return (x << by) | (x >> (32 - by)); }

// MurmurHash3, x86, 32 bits.
inline std::uint32_t murmur3(std::string_view bytes, std::uint32_t seed) {
    const auto mixed = [](std::uint32_t block) { return rotated(block * 0xcc9e2d51U, 15) * 0x1b873593U; };
    std::uint32_t hash = seed;
    const std::size_t n_blocks = bytes.size() / 4;
    for (std::size_t i = 0; i < n_blocks; ++i) {
        const auto* at = reinterpret_cast<const unsigned char*>(bytes.data()) + 4 * i;
        const std::uint32_t block = at[0] | at[1] << 8 | at[2] << 16 | static_cast<std::uint32_t>(at[3]) << 24;
        hash = rotated(hash ^ mixed(block), 13) * 5 + 0xe6546b64U;
    }
    std::uint32_t tail = 0;
    for (std::size_t i = bytes.size(); i > 4 * n_blocks; --i) tail = tail << 8 | static_cast<unsigned char>(bytes[i - 1]);
    hash = (hash ^ mixed(tail)) ^ static_cast<std::uint32_t>(bytes.size());
    hash = (hash ^ hash >> 16) * 0x85ebca6bU;
    hash = (hash ^ hash >> 13) * 0xc2b2ae35U;
    return hash ^ hash >> 16;
}

// VW's index of a feature in a namespace of this hash: it trims blanks and control characters, and takes a name of digits
// only as a number.
inline std::uint32_t feature_index(std::uint32_t seed, std::string_view name) {
    const auto is_blank = [](char c) { return static_cast<unsigned char>(c) <= 0x20; };
    while (!name.empty() && is_blank(name.front())) name.remove_prefix(1);
    while (!name.empty() && is_blank(name.back())) name.remove_suffix(1);
    std::uint32_t number = 0;
    for (const char c : name) {
        if (c < '0' || c > '9') return murmur3(name, seed);
        number = number * 10 + static_cast<std::uint32_t>(c - '0');
    }
    return number + seed;
}

inline std::string_view utf8(PyObject* text) {
    Py_ssize_t size = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(text, &size);
    if (bytes == nullptr) throw py::error_already_set();
    return {bytes, static_cast<std::size_t>(size)};
}

// (names, indices, values) of features by name, without those whose value is 0 in float32, which VW drops.
inline py::tuple encode_features(std::uint32_t seed, const py::dict& features) {
    py::list names;
    std::vector<std::uint32_t> indices;
    std::vector<float> values;
    indices.reserve(features.size());
    values.reserve(features.size());
    for (const auto& [name, given] : features) {
        const double number = PyFloat_AsDouble(given.ptr());
        if (number == -1.0 && PyErr_Occurred()) throw py::error_already_set();
        const float value = static_cast<float>(number);
        if (!std::isfinite(value))
            throw std::invalid_argument("feature " + std::string(py::repr(name)) + " must be finite, got " +
                                        std::string(py::str(given)));
        if (value == 0.0F) continue;
        names.append(name);
        indices.push_back(feature_index(seed, utf8(name.ptr())));
        values.push_back(value);
    }
    return py::make_tuple(py::tuple(names), to_array(indices), to_array(values));
}

}  // namespace hone
