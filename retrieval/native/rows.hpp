// Arrays of catalogue rows, and marks of few of them: no request pays for a pass over the catalogue.
#pragma once

#include <cstdint>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace hone {

namespace py = pybind11;

// An array of exactly this type, not copied when it already is one.
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Rows = Array<std::int32_t>;

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// A mark for each of at most n rows, by open addressing.
class RowMarks {
public:
    static constexpr std::int32_t none = -2;

    explicit RowMarks(std::size_t n) {
        while ((std::size_t{1} << bits_) < 2 * n) ++bits_;
        slots_.resize(std::size_t{1} << bits_, {0, none});
    }

    // The mark of a row, `none` unless it was set before.
    std::int32_t& operator[](std::int32_t row) {
        const std::size_t last = slots_.size() - 1;
        std::size_t place = (static_cast<std::uint32_t>(row) * 2654435769u) >> (32 - bits_);
        while (slots_[place].mark != none && slots_[place].row != row) place = (place + 1) & last;
        slots_[place].row = row;
        return slots_[place].mark;
    }

private:
    struct Slot {
        std::int32_t row, mark;
    };
    int bits_ = 4;
    std::vector<Slot> slots_;
};

}  // namespace hone
