// Uniform numbers of a key: the same bits as numpy's `Generator(Philox(key=...)).random`, without building one.
#pragma once

#include <array>
#include <string_view>

#include "limits.hpp"

namespace hone {

// Philox4x64 with ten rounds: four words of 64 bits of a counter and a key.
inline std::array<std::uint64_t, 4> philox(std::array<std::uint64_t, 4> words, std::array<std::uint64_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const auto one = static_cast<unsigned __int128>(0xD2E7470EE14C6C93ULL) * words[0];
        const auto two = static_cast<unsigned __int128>(0xCA5A826395121157ULL) * words[2];
        words = {static_cast<std::uint64_t>(two >> 64) ^ words[1] ^ key[0], static_cast<std::uint64_t>(two),
                 static_cast<std::uint64_t>(one >> 64) ^ words[3] ^ key[1], static_cast<std::uint64_t>(one)};
        key = {key[0] + 0x9E3779B97F4A7C15ULL, key[1] + 0xBB67AE8584CAA73BULL};
    }
    return words;
}

// float64 [n] in [0, 1), multiples of 2^-53, of a key of 16 bytes, little-endian.
inline py::array_t<double> philox_uniforms(std::string_view key, std::size_t n) {
    if (key.size() != 16) throw std::invalid_argument("a key must have 16 bytes, got " + std::to_string(key.size()));
    std::array<std::uint64_t, 2> words{};
    for (std::size_t i = 16; i > 0; --i)
        words[(i - 1) / 8] = words[(i - 1) / 8] << 8 | static_cast<unsigned char>(key[i - 1]);
    py::array_t<double> uniforms(static_cast<py::ssize_t>(n));
    double* out = uniforms.mutable_data();
    // numpy counts before it draws.
    for (std::size_t i = 0; i < n; i += 4) {
        const auto block = philox({i / 4 + 1, 0, 0, 0}, words);
        for (std::size_t k = 0; k < 4 && i + k < n; ++k) out[i + k] = static_cast<double>(block[k] >> 11) * 0x1.0p-53;
    }
    return uniforms;
}

}  // namespace hone
