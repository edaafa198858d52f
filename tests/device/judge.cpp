// The rules of buses behind one C function, so that traces from elsewhere can be judged.
// It must not know what the rules are.

#include <memory>

#include "rules.h"

namespace {

using namespace corepool;

struct Row {
    uint64_t arvalid, arready, arid, araddr, arlen, arsize, arburst;
    uint64_t awvalid, awready, awid, awaddr, awlen, awsize, awburst;
    uint64_t wvalid, wready, wdata, wstrb, wlast;
    uint64_t rvalid, rready, rid, rdata, rresp, rlast;
    uint64_t bvalid, bready, bid, bresp;
};

constexpr size_t MOST_LINE = 256;

Address address(uint64_t id, uint64_t place, uint64_t length, uint64_t size, uint64_t burst) {
    auto narrow = [](uint64_t value) { return static_cast<uint32_t>(value); };
    return {narrow(id), place, narrow(length), narrow(size), narrow(burst)};
}

// Data of which only the first eight bytes are not zero.
const uint8_t *wide(uint8_t (&line)[MOST_LINE], uint64_t value) {
    std::memcpy(line, &value, sizeof value);
    return line;
}

template <typename Rules> const char *judge(Rules &rules, const Row *rows, uint64_t count, uint64_t *cycle) {
    for (*cycle = 0; *cycle < count; ++*cycle) {
        const Row &row = rows[*cycle];
        uint8_t written[MOST_LINE] = {}, read[MOST_LINE] = {}, strobe[MOST_LINE] = {};
        Cycle now;
        now.ar = {!!row.arvalid, !!row.arready, address(row.arid, row.araddr, row.arlen, row.arsize, row.arburst)};
        now.aw = {!!row.awvalid, !!row.awready, address(row.awid, row.awaddr, row.awlen, row.awsize, row.awburst)};
        now.w = {!!row.wvalid, !!row.wready, {!!row.wlast}, wide(written, row.wdata), wide(strobe, row.wstrb)};
        now.r = {!!row.rvalid, !!row.rready,
                 {static_cast<uint32_t>(row.rid), static_cast<uint32_t>(row.rresp), !!row.rlast}, wide(read, row.rdata)};
        now.b = {!!row.bvalid, !!row.bready, {static_cast<uint32_t>(row.bid), static_cast<uint32_t>(row.bresp)}};
        if (const char *rule = rules.see(now)) return rule;
    }
    return nullptr;
}

}  // namespace

extern "C" {

// The rule that is broken, or null; ``cycle`` tells where it was found, ``open`` what is left open at the end.
const char *judge_axi4(const Row *rows, uint64_t count, const uint32_t *limits, uint64_t *cycle, uint64_t *open) {
    Axi4Rules rules({limits[0], limits[1], limits[2], limits[3], limits[4], limits[5]});
    const char *rule = judge(rules, rows, count, cycle);
    *open = rules.open();
    return rule;
}

const char *judge_lite(const Row *rows, uint64_t count, uint64_t *cycle) {
    LiteRules rules;
    return judge(rules, rows, count, cycle);
}
}
