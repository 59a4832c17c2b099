// One set of candidates from several sources; `retrieval/sources.py` has the meaning.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "rows.hpp"

namespace hone {

inline std::tuple<py::array_t<std::int32_t>, py::array_t<std::uint8_t>, py::array_t<float>> blend(
    const std::vector<Rows>& sources, const std::vector<Array<float>>& scores, const std::vector<std::int64_t>& quotas,
    std::int64_t limit) {
    const std::size_t n_sources = sources.size();
    bool fits = scores.size() == n_sources && quotas.size() == n_sources;
    std::size_t n = 0;
    for (std::size_t s = 0; fits && s < n_sources; ++s) {
        fits = scores[s].size() == sources[s].size();
        n += static_cast<std::size_t>(sources[s].size());
    }
    if (!fits) throw std::invalid_argument("every source needs a quota, and each of its rows a score");
    // Any other mark of a row is the last source that has it left over.
    constexpr std::int32_t is_taken = -1;
    RowMarks marks(n);
    std::vector<std::int32_t> rows;
    std::vector<std::uint8_t> codes;
    std::vector<float> own;
    const auto n_most = static_cast<std::size_t>(std::clamp<std::int64_t>(limit, 0, static_cast<std::int64_t>(n)));
    rows.reserve(n_most);
    codes.reserve(n_most);
    own.reserve(n_most);
    std::int64_t room = limit;
    const auto place = [&](std::size_t s, py::ssize_t i) {
        const std::int32_t row = sources[s].data()[i];
        std::int32_t& mark = marks[row];
        if (mark == is_taken) return false;
        mark = is_taken;
        rows.push_back(row);
        codes.push_back(static_cast<std::uint8_t>(s));
        own.push_back(scores[s].data()[i]);
        --room;
        return true;
    };
    std::vector<py::ssize_t> next(n_sources, 0);
    for (std::size_t s = 0; s < n_sources; ++s)
        for (std::int64_t left = std::min(quotas[s], room); left > 0 && next[s] < sources[s].size(); ++next[s])
            left -= place(s, next[s]);
    if (room > 0) {
        // Only now it is known what of each source no quota has placed.
        std::vector<std::vector<py::ssize_t>> rest(n_sources);
        std::size_t n_turns = 0;
        for (std::size_t s = 0; s < n_sources; ++s) {
            const auto code = static_cast<std::int32_t>(s);
            for (py::ssize_t i = next[s]; i < sources[s].size(); ++i) {
                std::int32_t& mark = marks[sources[s].data()[i]];
                if (mark == is_taken || mark == code) continue;
                mark = code;
                rest[s].push_back(i);
            }
            n_turns = std::max(n_turns, rest[s].size());
        }
        for (std::size_t turn = 0; turn < n_turns && room > 0; ++turn)
            for (std::size_t s = 0; s < n_sources && room > 0; ++s)
                if (turn < rest[s].size()) place(s, rest[s][turn]);
    }
    return {to_array(rows), to_array(codes), to_array(own)};
}

}  // namespace hone
