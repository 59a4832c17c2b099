// Who may be shown what, in one pass over the rows that are asked about.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "rows.hpp"

namespace hone {

// The columns that eligibility reads, by row. Of countries it is given one column of several: no copy is made of that.
struct Eligibility {
    Array<bool> listed;
    Array<std::int64_t> available_ms, expires_ms;
    py::array_t<bool> allowed;
    Array<std::int16_t> min_age;
};

// bool [n]: which rows may be shown at `now_ms`. Without an age there is no age gate; an item of unknown age needs
// `unknown_needs`. The rows in `hidden` never.
inline py::array_t<bool> eligible(const Rows& rows, const Eligibility& columns, std::int64_t now_ms,
                                  std::optional<std::int64_t> age, std::int16_t unknown_age,
                                  std::int64_t unknown_needs, const Rows& hidden) {
    constexpr std::int32_t is_hidden = 0;
    RowMarks marks(static_cast<std::size_t>(hidden.size()));
    for (py::ssize_t i = 0; i < hidden.size(); ++i) marks[hidden.data()[i]] = is_hidden;
    const bool* listed = columns.listed.data();
    const std::int64_t *available_ms = columns.available_ms.data(), *expires_ms = columns.expires_ms.data();
    const std::int16_t* min_age = columns.min_age.data();
    const auto allowed = columns.allowed.unchecked<1>();
    const py::ssize_t n_rows = columns.listed.size();
    if (columns.available_ms.size() != n_rows || columns.expires_ms.size() != n_rows || allowed.size() != n_rows ||
        columns.min_age.size() != n_rows)
        throw std::invalid_argument("all columns must be equally long");
    py::array_t<bool> mask(rows.size());
    bool* may = mask.mutable_data();
    for (py::ssize_t i = 0; i < rows.size(); ++i) {
        const std::int32_t row = rows.data()[i];
        if (row < 0 || row >= n_rows)
            throw std::out_of_range("row must be in [0, " + std::to_string(n_rows) + "), got " + std::to_string(row));
        may[i] = listed[row] && available_ms[row] <= now_ms && expires_ms[row] > now_ms && allowed(row);
        if (may[i] && age) may[i] = (min_age[row] == unknown_age ? unknown_needs : min_age[row]) <= *age;
        if (may[i] && hidden.size()) may[i] = marks[row] != is_hidden;
    }
    return mask;
}

}  // namespace hone
