// The slate so far. `view` says what the next slot may hold; `place` fills it.
#pragma once

#include "slot.hpp"

namespace hone {

class SlateState {
public:
    SlateState(const Array<float>& scores, const std::optional<Float64s>& fixed_boosts,
               const std::optional<Array<bool>>& open, std::vector<std::shared_ptr<Limit>> limits,
               std::vector<std::shared_ptr<Likeness>> likenesses)
        : scores_(scores.data(), scores.data() + scores.size()), open_(scores_.size(), 1), limits_(std::move(limits)),
          likenesses_(std::move(likenesses)) {
        const std::size_t n = scores_.size();
        bool fits = (!fixed_boosts || static_cast<std::size_t>(fixed_boosts->size()) == n) &&
                    (!open || static_cast<std::size_t>(open->size()) == n);
        for (const auto& limit : limits_) fits = fits && limit->size() == n;
        for (const auto& likeness : likenesses_) fits = fits && likeness->size() == n;
        if (!fits) throw std::invalid_argument("all arrays of a slate must be as long as its scores");
        if (open) open_.assign(open->data(), open->data() + n);
        fixed_ = fixed_boosts ? std::vector<double>(fixed_boosts->data(), fixed_boosts->data() + n)
                              : std::vector<double>(n, 0.0);
        boost(fixed_);
    }

    void place(std::int64_t action) {
        check_action(action, open_.size());
        if (std::find(placed_.begin(), placed_.end(), action) != placed_.end())
            throw std::invalid_argument("action " + std::to_string(action) + " is already in the slate");
        open_[action] = 0;
        placed_.push_back(action);
    }

    // The positions that were placed, slot by slot.
    const std::vector<std::int64_t>& placed() const { return placed_; }

    // The next slot and which limits gave way, none when no candidate is left; the limit declared last gives way first.
    std::optional<std::pair<SlotView, std::vector<std::size_t>>> view(std::size_t shortlist) {
        note_placed();
        const std::size_t n = open_.size();
        if (std::find(open_.begin(), open_.end(), 1) == open_.end()) return std::nullopt;
        std::vector<std::size_t> asking, gave_way;
        for (std::size_t k = 0; k < limits_.size(); ++k)
            if (limits_[k]->mask()) asking.push_back(k);
        std::vector<std::uint8_t> may;
        for (;;) {
            may = open_;
            for (const std::size_t k : asking) {
                const std::uint8_t* mask = limits_[k]->mask()->data();
                for (std::size_t i = 0; i < n; ++i) may[i] = may[i] && mask[i];
            }
            if (asking.empty() || std::find(may.begin(), may.end(), 1) != may.end()) break;
            gave_way.push_back(asking.back());
            asking.pop_back();
        }
        return std::make_pair(view_slot(boosted_, boosts_, std::move(may), shortlist), std::move(gave_way));
    }

    // The next slot when a placement fills it.
    SlotView only(std::int64_t action) {
        note_placed();
        check_action(action, open_.size());
        std::vector<std::uint8_t> may(open_.size(), 0);
        may[action] = 1;
        return view_slot(boosted_, boosts_, std::move(may), 0);
    }

private:
    // Only when the next slot is asked for: nothing follows the last one.
    void note_placed() {
        if (n_noted_ == placed_.size()) return;
        for (; n_noted_ < placed_.size(); ++n_noted_) {
            for (const auto& limit : limits_) limit->place(placed_[n_noted_]);
            for (const auto& likeness : likenesses_) likeness->place(placed_[n_noted_]);
        }
        if (likenesses_.empty()) return;
        std::vector<double> boosts = fixed_;
        for (const auto& likeness : likenesses_)
            for (std::size_t i = 0; i < boosts.size(); ++i) boosts[i] += likeness->boost()[i];
        boost(std::move(boosts));
    }

    // New arrays: those of the slot before were given away.
    void boost(std::vector<double> boosts) {
        std::vector<double> boosted(boosts.size());
        for (std::size_t i = 0; i < boosted.size(); ++i) boosted[i] = scores_[i] + boosts[i];
        boosts_ = share(std::move(boosts));
        boosted_ = share(std::move(boosted));
    }

    std::vector<double> scores_, fixed_;
    Shared<double> boosts_, boosted_;
    std::vector<std::uint8_t> open_;
    std::vector<std::shared_ptr<Limit>> limits_;
    std::vector<std::shared_ptr<Likeness>> likenesses_;
    std::vector<std::int64_t> placed_;
    std::size_t n_noted_ = 0;
};

}  // namespace hone
