// Judges the buses of the pool's edge, cycle by cycle: a full AXI4 port and an AXI4-Lite port.
// It must not know what moves or who stands at either end. tests/support/axi.py has the same rules in Python, written
// apart; tests hold the two against each other.
//
// A port's see() is given what stands at its signals just before a clock edge and returns the rule that is broken, as
// text, or null. After a broken rule it must not be asked again.

#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

namespace corepool {

struct Address {
    uint32_t id = 0;
    uint64_t place = 0;
    uint32_t length = 0, size = 0, burst = 0;  // AxLEN, AxSIZE, AxBURST
    bool operator==(const Address &) const = default;
};

struct Answer {
    uint32_t id = 0, response = 0;
    bool last = true;  // of read data only
    bool operator==(const Answer &) const = default;
};

// One channel: whether it is offered and taken, and what is offered. ``data`` and ``strobe`` belong to W and R.
template <typename Payload> struct Channel {
    bool valid = false, ready = false;
    Payload payload{};
    const uint8_t *data = nullptr, *strobe = nullptr;
    bool taken() const { return valid && ready; }
};

struct Beat {
    bool last = true;
    bool operator==(const Beat &) const = default;
};

struct Cycle {
    Channel<Address> ar, aw;
    Channel<Beat> w;
    Channel<Answer> r, b;
};

// What is offered and not taken stays offered, and stays the same.
template <typename Payload> class Held {
  public:
    Held(const char *fell, const char *changed, size_t data_bytes = 0, size_t strobe_bytes = 0)
        : fell_(fell), changed_(changed), data_(data_bytes), strobe_(strobe_bytes) {}

    const char *see(const Channel<Payload> &now) {
        if (waits_) {
            if (!now.valid) return fell_;
            if (now.payload != payload_ || differs(data_, now.data) || differs(strobe_, now.strobe)) return changed_;
        }
        waits_ = now.valid && !now.ready;
        if (waits_) {
            payload_ = now.payload;
            if (!data_.empty()) std::memcpy(data_.data(), now.data, data_.size());
            if (!strobe_.empty()) std::memcpy(strobe_.data(), now.strobe, strobe_.size());
        }
        return nullptr;
    }

  private:
    static bool differs(const std::vector<uint8_t> &kept, const uint8_t *now) {
        return !kept.empty() && std::memcmp(kept.data(), now, kept.size());
    }

    const char *fell_, *changed_;
    bool waits_ = false;
    Payload payload_{};
    std::vector<uint8_t> data_, strobe_;
};

constexpr uint64_t KIB_4 = 4096;
constexpr uint32_t INCR = 1, EXOKAY = 1;
constexpr uint32_t MOST_SIZE = 7;  // AXI4 ends at 128 bytes a beat; wider lines keep the code of 128

// What a full port may do beyond what AXI4 says of every port.
struct Limits {
    uint32_t line_bytes = 0;                 // of the data bus; every beat is a whole line
    uint32_t first_reader = 0, readers = 0;  // IDs of reads: so many from this one on
    uint32_t writers = 0;                    // IDs of writes: so many from 0 on
    uint32_t open_reads = 0;                 // bursts of one ID that are not answered yet
    uint32_t open_writes = 0;
};

class Axi4Rules {
  public:
    explicit Axi4Rules(const Limits &limits)
        : limits_(limits), aw_("AWVALID fell before AWREADY came", "AW changed before AWREADY came"),
          ar_("ARVALID fell before ARREADY came", "AR changed before ARREADY came"),
          w_("WVALID fell before WREADY came", "W changed before WREADY came", limits.line_bytes,
             (limits.line_bytes + 7) / 8),
          r_("RVALID fell before RREADY came", "R changed before RREADY came", limits.line_bytes),
          b_("BVALID fell before BREADY came", "B changed before BREADY came"), reads_(limits.readers),
          unanswered_(limits.writers), written_(limits.writers) {}

    // Answers may come in the cycle after what they answer at the earliest, so they are judged first.
    const char *see(const Cycle &now) {
        const char *broken = nullptr;
        if ((broken = ar_.see(now.ar)) || (broken = aw_.see(now.aw)) || (broken = w_.see(now.w)) ||
            (broken = r_.see(now.r)) || (broken = b_.see(now.b)))
            return broken;
        if (now.r.taken() && (broken = read_beat(now.r.payload))) return broken;
        if (now.b.taken() && (broken = answer(now.b.payload))) return broken;
        if (now.ar.taken() && (broken = read_address(now.ar.payload))) return broken;
        if (now.aw.taken() && (broken = write_address(now.aw.payload))) return broken;
        if (now.w.taken()) {
            if ((broken = strobe(now.w.strobe))) return broken;
            early_.push_back(now.w.payload.last);
        }
        return match();
    }

    // Bursts that are asked for and not answered, and data without an address.
    uint64_t open() const {
        uint64_t count = early_.size();
        for (const auto &left : reads_) count += left.size();
        for (const uint32_t left : unanswered_) count += left;
        return count;
    }

  private:
    const char *burst(const Address &asked) const {
        const uint32_t bytes = limits_.line_bytes;
        const uint32_t size = asked.size == MOST_SIZE && bytes > 1u << MOST_SIZE ? bytes : 1u << asked.size;
        if (asked.burst != INCR) return "a burst is of another type than INCR";
        if (size != bytes) return "a beat is not as wide as the bus";
        if (asked.place % bytes) return "a burst does not begin at a line";
        if (asked.place / KIB_4 != (asked.place + (asked.length + 1ull) * bytes - 1) / KIB_4)
            return "a burst crosses 4 KiB";
        return nullptr;
    }

    const char *read_address(const Address &asked) {
        if (asked.id - limits_.first_reader >= limits_.readers) return "ARID is no core of this bank";
        std::deque<uint32_t> &open = reads_[asked.id - limits_.first_reader];
        if (open.size() >= limits_.open_reads) return "more reads of an ID are open than are configured";
        open.push_back(asked.length + 1);
        return burst(asked);
    }

    const char *read_beat(const Answer &beat) {
        if (beat.response == EXOKAY) return "RRESP is EXOKAY, which nobody asked for";
        const uint32_t place = beat.id - limits_.first_reader;
        if (place >= limits_.readers || reads_[place].empty()) return "R has the ID of no open read";
        std::deque<uint32_t> &open = reads_[place];
        if (beat.last != (--open.front() == 0)) return "RLAST is not at the end of the burst";
        if (beat.last) open.pop_front();
        return nullptr;
    }

    const char *write_address(const Address &asked) {
        if (asked.id >= limits_.writers) return "AWID is no core of the pool";
        if (unanswered_[asked.id] >= limits_.open_writes) return "more writes of an ID are open than are configured";
        ++unanswered_[asked.id];
        bursts_.push_back({asked.id, asked.length + 1});
        return burst(asked);
    }

    // Beats are whole lines, so that all of a strobe lies within its transfer. What the pool writes is one piece.
    const char *strobe(const uint8_t *bits) const {
        uint32_t pieces = 0;
        bool before = false;
        for (uint32_t byte = 0; byte < limits_.line_bytes; byte += 8) {
            const uint8_t piece = bits[byte / 8];
            const uint32_t width = limits_.line_bytes < 8 ? limits_.line_bytes : 8;
            if (piece == (before ? 0xFF : 0)) continue;
            for (uint32_t bit = 0; bit < width; ++bit) {
                const bool set = piece >> bit & 1;
                pieces += set && !before;
                before = set;
            }
        }
        if (!pieces) return "a beat writes nothing";
        return pieces > 1 ? "a strobe is in pieces" : nullptr;
    }

    // Beats of data belong to bursts in order; the last one of each is marked.
    const char *match() {
        while (!bursts_.empty() && !early_.empty()) {
            Write &first = bursts_.front();
            const bool last = early_.front();
            early_.pop_front();
            if (last != (--first.beats == 0)) return "WLAST is not at the end of the burst";
            if (!last) continue;
            ++written_[first.id];
            bursts_.pop_front();
        }
        return nullptr;
    }

    const char *answer(const Answer &told) {
        if (told.response == EXOKAY) return "BRESP is EXOKAY, which nobody asked for";
        if (told.id >= limits_.writers || !written_[told.id]) return "B has the ID of no complete write";
        --written_[told.id];
        --unanswered_[told.id];
        return nullptr;
    }

    struct Write {
        uint32_t id, beats;
    };

    Limits limits_;
    Held<Address> aw_, ar_;
    Held<Beat> w_;
    Held<Answer> r_, b_;
    std::vector<std::deque<uint32_t>> reads_;  // by ID: beats to come of each open burst
    std::vector<uint32_t> unanswered_, written_;  // by ID: bursts without B; those whose data is complete
    std::deque<Write> bursts_;                    // whose data is not complete
    std::deque<bool> early_;                      // beats before their address: last or not
};

// AXI4-Lite: one read and one write at a time, each answered once. IDs, lengths and lasts are not looked at.
class LiteRules {
  public:
    LiteRules()
        : aw_("AWVALID fell before AWREADY came", "AW changed before AWREADY came"),
          ar_("ARVALID fell before ARREADY came", "AR changed before ARREADY came"),
          w_("WVALID fell before WREADY came", "W changed before WREADY came", 4, 1),
          r_("RVALID fell before RREADY came", "R changed before RREADY came", 4),
          b_("BVALID fell before BREADY came", "B changed before BREADY came") {}

    const char *see(const Cycle &now) {
        const char *broken = nullptr;
        if ((broken = ar_.see(now.ar)) || (broken = aw_.see(now.aw)) || (broken = w_.see(now.w)) ||
            (broken = r_.see(now.r)) || (broken = b_.see(now.b)))
            return broken;
        if (now.r.valid && !reads_) return "R answers nothing";
        if (now.b.valid && !(addresses_ && data_)) return "B answers nothing";
        if ((now.r.valid && now.r.payload.response == EXOKAY) || (now.b.valid && now.b.payload.response == EXOKAY))
            return "EXOKAY, which AXI4-Lite does not have";
        reads_ += now.ar.taken() - now.r.taken();
        addresses_ += now.aw.taken() - now.b.taken();
        data_ += now.w.taken() - now.b.taken();
        if (reads_ > 1) return "more than one read is open";
        return addresses_ > 1 || data_ > 1 ? "more than one write is open" : nullptr;
    }

  private:
    Held<Address> aw_, ar_;
    Held<Beat> w_;
    Held<Answer> r_, b_;
    int reads_ = 0, addresses_ = 0, data_ = 0;
};

}  // namespace corepool
