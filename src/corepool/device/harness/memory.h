// The memory of one bank at an AXI4 port. It takes a line a cycle each way and answers after fixed latencies, in order;
// disturbed, it holds everything back at random, and answers IDs in any order.
// It must not know the pool; who breaks a rule of the bus is judged elsewhere.

#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>

#include "rules.h"

namespace corepool {

// A small generator of random numbers (xorshift), the same on every machine.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull | 1) {
        for (int count = 0; count < 8; ++count) below(2);
    }

    uint32_t below(uint32_t end) {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return static_cast<uint32_t>(state_ >> 32) % end;
    }

  private:
    uint64_t state_;
};

template <uint32_t LINE> class Memory {
  public:
    // Gaps: cycles from AR to R, and from AW and W to B.
    Memory(uint8_t *bytes, uint64_t size, uint32_t read_gap, uint32_t write_gap)
        : bytes_(bytes), size_(size), read_gap_(read_gap), write_gap_(write_gap) {}

    // From now on nothing comes when it could; all that comes is the same. ``seed`` 0: on time again.
    void disturb(uint64_t seed) {
        disturbed_ = seed != 0;
        random_ = Random(seed);
        if (!disturbed_) ar_ready = aw_ready = w_ready = true;
    }

    // What stands at the bus before the clock edge that ends ``cycle``.
    void see(const Cycle &now, uint64_t cycle) {
        if (now.ar.taken()) read(now.ar.payload, cycle);
        if (now.aw.taken())
            for (uint32_t beat = 0; beat <= now.aw.payload.length; ++beat)
                places_.push_back(
                    {now.aw.payload.place + beat * LINE, now.aw.payload.id, beat == now.aw.payload.length});
        if (now.w.taken()) {
            contents_.emplace_back();
            std::memcpy(contents_.back().line.data(), now.w.data, LINE);
            std::memcpy(contents_.back().strobe.data(), now.w.strobe, contents_.back().strobe.size());
        }
        while (!places_.empty() && !contents_.empty()) write(cycle);
        if (now.r.taken()) r_valid = false;
        if (now.b.taken()) b_valid = false;
    }

    // What stands there behind the edge, in ``cycle``.
    void drive(uint64_t cycle) {
        if (!r_valid) {
            const size_t chosen = choose(reads_, cycle);
            if ((r_valid = chosen < reads_.size())) {
                r = reads_[chosen].answer;
                line_ = reads_[chosen].line;
                reads_.erase(reads_.begin() + static_cast<long>(chosen));
            }
        }
        if (!b_valid) {
            const size_t chosen = choose(answers_, cycle);
            if ((b_valid = chosen < answers_.size())) {
                b = answers_[chosen].answer;
                answers_.erase(answers_.begin() + static_cast<long>(chosen));
            }
        }
        if (!disturbed_) return;
        ar_ready = random_.below(10) < 7;
        aw_ready = random_.below(10) < 7;
        w_ready = random_.below(10) < 7;
    }

    bool ar_ready = true, aw_ready = true, w_ready = true, r_valid = false, b_valid = false;
    Answer r, b;
    const uint8_t *line() const { return line_.data(); }  // of R
    uint64_t outside() const { return outside_; }         // lines beyond the memory, which are not there

  private:
    static constexpr uint32_t MOST_LATE = 24;  // cycles, about a latency

    using Line = std::array<uint8_t, LINE>;

    struct Due {
        uint64_t cycle;
        Answer answer;
    };

    struct Data : Due {
        Line line;
    };

    struct Content {
        Line line;
        std::array<uint8_t, (LINE + 7) / 8> strobe;
    };

    struct Place {
        uint64_t place;
        uint32_t id;
        bool last;
    };

    uint64_t late() { return disturbed_ ? random_.below(MOST_LATE) : 0; }

    void read(const Address &asked, uint64_t cycle) {
        const uint64_t due = cycle + read_gap_ + late();
        for (uint32_t beat = 0; beat <= asked.length; ++beat) {
            const uint64_t place = asked.place + beat * LINE;
            reads_.push_back({{due, {asked.id, 0, beat == asked.length}}, {}});
            if (place + LINE <= size_)
                std::memcpy(reads_.back().line.data(), bytes_ + place, LINE);
            else
                ++outside_;
        }
    }

    void write(uint64_t cycle) {
        const Place where = places_.front();
        const Content &content = contents_.front();
        const bool there = where.place + LINE <= size_;
        outside_ += !there;
        for (uint32_t byte = 0; there && byte < LINE; ++byte)
            if (content.strobe[byte / 8] >> (byte % 8) & 1) bytes_[where.place + byte] = content.line[byte];
        contents_.pop_front();
        places_.pop_front();
        if (where.last) answers_.push_back({cycle + write_gap_ + late(), {where.id, 0, true}});
    }

    // The place of what is answered now, or the end: the oldest; disturbed, the oldest of any ID, or nothing yet.
    template <typename Entry> size_t choose(const std::deque<Entry> &waiting, uint64_t cycle) {
        if (!disturbed_) return !waiting.empty() && waiting.front().cycle <= cycle ? 0 : waiting.size();
        if (waiting.empty() || random_.below(5) == 0) return waiting.size();
        uint64_t seen = 0;  // IDs, a bit each
        size_t chosen = waiting.size();
        uint32_t count = 0;
        for (size_t place = 0; place < waiting.size(); ++place) {
            const uint64_t bit = 1ull << waiting[place].answer.id % 64;
            if (!(seen & bit) && waiting[place].cycle <= cycle && random_.below(++count) == 0) chosen = place;
            seen |= bit;
        }
        return chosen;
    }

    uint8_t *bytes_;
    uint64_t size_;
    uint32_t read_gap_, write_gap_;
    bool disturbed_ = false;
    Random random_{1};
    std::deque<Data> reads_;
    std::deque<Due> answers_;
    std::deque<Place> places_;      // of writes whose data has not come
    std::deque<Content> contents_;  // of writes whose address has not come
    Line line_{};
    uint64_t outside_ = 0;
};

}  // namespace corepool
