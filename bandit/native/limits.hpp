// What the rules of one slate remember of the slots before: which candidates the next slot may hold, and how alike
// each candidate is to what was placed. Pure: arrays in, arrays out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace hone {

namespace py = pybind11;

// An array of exactly this type, not copied when it already is one.
template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

inline py::array_t<bool> to_mask(const std::vector<std::uint8_t>& values) {
    py::array_t<bool> mask(static_cast<py::ssize_t>(values.size()));
    std::copy(values.begin(), values.end(), mask.mutable_data());
    return mask;
}

inline void check_action(std::int64_t action, std::size_t n) {
    if (action < 0 || static_cast<std::size_t>(action) >= n)
        throw std::invalid_argument("action must be in [0, " + std::to_string(n) + "), got " + std::to_string(action));
}

// Counting bits is one instruction on processors that have it, and a call elsewhere.
#if defined(__x86_64__) && defined(__gnu_linux__)
#define HONE_POPCOUNT __attribute__((target_clones("default", "popcnt")))
#else
#define HONE_POPCOUNT
#endif

// int [n], how many tags each of n sets has in common with `tags`.
HONE_POPCOUNT inline void count_shared(const std::uint64_t* sets, std::uint64_t tags, std::size_t n, int* n_shared) {
    for (std::size_t i = 0; i < n; ++i) n_shared[i] = __builtin_popcountll(sets[i] & tags);
}

// One rule that forbids, at work on one slate.
class Limit {
public:
    virtual ~Limit() = default;
    virtual void place(std::int64_t action) = 0;
    // What the next slot may hold, null for everything; it changes with the next `place`.
    virtual const std::vector<std::uint8_t>* mask() const = 0;
    virtual std::size_t size() const = 0;
};

// At most `limit` placed items of one category within any `window` consecutive slots.
class CategoryLimit final : public Limit {
public:
    CategoryLimit(Array<std::int32_t> codes, std::int32_t no_code, std::size_t limit, std::size_t window)
        : codes_(std::move(codes)), no_code_(no_code), limit_(limit), window_(window), open_(codes_.size(), 1) {}

    void place(std::int64_t action) override {
        check_action(action, open_.size());
        const std::int32_t code = codes_.data()[action];
        recent_.push_back(code);
        std::int32_t left = no_code_;
        if (recent_.size() == window_) {
            left = recent_.front();
            recent_.pop_front();
        }
        if (left == code) return;
        if (closed_.count(left) && count(left) < limit_) {
            closed_.erase(left);
            mark(left, 1);
        }
        if (code != no_code_ && count(code) == limit_) {
            closed_.insert(code);
            mark(code, 0);
        }
    }

    const std::vector<std::uint8_t>* mask() const override { return closed_.empty() ? nullptr : &open_; }
    std::size_t size() const override { return open_.size(); }

private:
    std::size_t count(std::int32_t code) const { return std::count(recent_.begin(), recent_.end(), code); }

    void mark(std::int32_t code, std::uint8_t is_open) {
        const std::int32_t* codes = codes_.data();
        for (std::size_t i = 0; i < open_.size(); ++i)
            if (codes[i] == code) open_[i] = is_open;
    }

    Array<std::int32_t> codes_;
    std::int32_t no_code_;
    std::size_t limit_, window_;
    std::deque<std::int32_t> recent_;  // The codes of the last window - 1 slots: what shares a window with the next.
    std::unordered_set<std::int32_t> closed_;
    std::vector<std::uint8_t> open_;
};

// The same for tags, where an item counts towards each of its own.
class TagLimit final : public Limit {
public:
    TagLimit(Array<std::uint64_t> tags, std::size_t limit, std::size_t window)
        : tags_(std::move(tags)), limit_(limit), window_(window), open_(tags_.size(), 1) {}

    void place(std::int64_t action) override {
        check_action(action, open_.size());
        recent_.push_back(tags_.data()[action]);
        if (recent_.size() == window_) recent_.pop_front();
        const std::uint64_t closed = at_limit();
        if (closed == closed_) return;
        closed_ = closed;
        const std::uint64_t* tags = tags_.data();
        for (std::size_t i = 0; i < open_.size(); ++i) open_[i] = (tags[i] & closed) == 0;
    }

    const std::vector<std::uint8_t>* mask() const override { return closed_ ? &open_ : nullptr; }
    std::size_t size() const override { return open_.size(); }

private:
    // The tags that as many of the recent items have as the limit allows.
    std::uint64_t at_limit() const {
        if (recent_.size() < limit_) return 0;
        std::vector<std::uint64_t> at_least(limit_, 0);  // Tags of at least 1, 2, ... of the items so far.
        for (std::uint64_t carried : recent_)
            for (std::uint64_t& held : at_least) {
                const std::uint64_t both = held & carried;
                held |= carried;
                carried = both;
            }
        return at_least.back();
    }

    Array<std::uint64_t> tags_;
    std::size_t limit_, window_;
    std::deque<std::uint64_t> recent_;  // The tags of the last window - 1 slots.
    std::uint64_t closed_ = 0;
    std::vector<std::uint8_t> open_;
};

// Some positions hold items of a pool only.
class PoolLimit final : public Limit {
public:
    PoolLimit(Array<bool> pool, std::vector<std::int64_t> positions)
        : pool_(pool.data(), pool.data() + pool.size()), positions_(std::move(positions)) {}

    void place(std::int64_t action) override {
        check_action(action, pool_.size());
        ++slot_;
    }

    const std::vector<std::uint8_t>* mask() const override {
        const bool is_reserved = std::find(positions_.begin(), positions_.end(), slot_) != positions_.end();
        return is_reserved ? &pool_ : nullptr;
    }
    std::size_t size() const override { return pool_.size(); }

private:
    std::vector<std::uint8_t> pool_;
    std::vector<std::int64_t> positions_;
    std::int64_t slot_ = 0;
};

// `weight` times the largest Jaccard index of a candidate's tags with those of a placed item, off the score.
class Likeness {
public:
    Likeness(Array<std::uint64_t> tags, double weight)
        : tags_(std::move(tags)), weight_(weight), n_tags_(tags_.size()), n_shared_(tags_.size()),
          likeness_(tags_.size(), 0.0), boost_(tags_.size(), 0.0) {
        count_shared(tags_.data(), ~std::uint64_t{0}, n_tags_.size(), n_tags_.data());
    }

    void place(std::int64_t action) {
        check_action(action, likeness_.size());
        const int n_placed = n_tags_[action];
        if (n_placed == 0) return;
        count_shared(tags_.data(), tags_.data()[action], n_shared_.size(), n_shared_.data());
        for (std::size_t i = 0; i < likeness_.size(); ++i) {
            // |A or B| = |A| + |B| - |A and B|, which is not 0: what was placed has tags.
            const double jaccard = static_cast<double>(n_shared_[i]) / (n_tags_[i] + n_placed - n_shared_[i]);
            likeness_[i] = std::max(likeness_[i], jaccard);
            boost_[i] = likeness_[i] * -weight_;
        }
    }

    const std::vector<double>& boost() const { return boost_; }
    std::size_t size() const { return boost_.size(); }

private:
    Array<std::uint64_t> tags_;
    double weight_;
    std::vector<int> n_tags_, n_shared_;
    std::vector<double> likeness_, boost_;
};

}  // namespace hone
