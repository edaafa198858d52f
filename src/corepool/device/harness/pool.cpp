// Runs the pool's Verilog with a memory at each bank, for a host that speaks through a few C functions.
// It must not know registers, leases or streams. ports.h is written by the builder: Verilator's names, sizes, latencies,
// and the wires between the pool and its cores, which are models of their own (CORES 0: they are within the pool's).

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "Vpool.h"
#include "memory.h"
#include "ports.h"
#include "rules.h"
#include "verilated.h"
#if CORES
#include "Vcore.h"
#endif

namespace {

using namespace corepool;

// A bank: its memory, and who judges the bus between.
struct Bank {
    Bank(int number, uint8_t *bytes, uint64_t size)
        : memory(bytes, size, READ_GAP, WRITE_GAP),
          rules({LINE_BYTES, static_cast<uint32_t>(number) * CORES_PER_BANK, CORES_PER_BANK, BANKS * CORES_PER_BANK,
                 OPEN_READS, OPEN_WRITES}) {}

    Memory<LINE_BYTES> memory;
    Axi4Rules rules;
};

struct Device {
    VerilatedContext context;
    std::unique_ptr<Vpool> pool;
#if CORES
    std::unique_ptr<Vcore> cores[CORES];
#endif
    std::unique_ptr<Bank> banks[BANKS];
    LiteRules host_rules;
    Random random{0};
    bool disturbed = false;
    uint64_t cycle = 0;    // cycles since reset
    uint64_t endless = 0;  // loops of wires that did not come to rest: no result may be trusted
    std::string broken;    // the first rule of a bus that was broken, where and when; nothing runs from then on
};

// Copies of what stands at the ports of one bus.
#define ADDRESS(channel, n)                                                                                           \
    if ((now.channel.valid = pool.PORT(n, channel##valid))) {                                                         \
        now.channel.ready = pool.PORT(n, channel##ready);                                                             \
        now.channel.payload = {static_cast<uint32_t>(pool.PORT(n, channel##id)), pool.PORT(n, channel##addr),         \
                               pool.PORT(n, channel##len), pool.PORT(n, channel##size), pool.PORT(n, channel##burst)};\
    }

#define SAMPLE(n)                                                                                                     \
    {                                                                                                                 \
        Cycle now;                                                                                                    \
        ADDRESS(ar, n)                                                                                                \
        ADDRESS(aw, n)                                                                                                \
        if ((now.w.valid = pool.PORT(n, wvalid))) {                                                                   \
            now.w.ready = pool.PORT(n, wready);                                                                       \
            now.w.payload.last = pool.PORT(n, wlast);                                                                 \
            now.w.data = bytes_of(pool.PORT(n, wdata));                                                               \
            now.w.strobe = bytes_of(pool.PORT(n, wstrb));                                                             \
        }                                                                                                             \
        if ((now.r.valid = pool.PORT(n, rvalid))) {                                                                   \
            now.r.ready = pool.PORT(n, rready);                                                                       \
            now.r.payload = {static_cast<uint32_t>(pool.PORT(n, rid)), pool.PORT(n, rresp),                           \
                             static_cast<bool>(pool.PORT(n, rlast))};                                                 \
            now.r.data = bytes_of(pool.PORT(n, rdata));                                                               \
        }                                                                                                             \
        if ((now.b.valid = pool.PORT(n, bvalid))) {                                                                   \
            now.b.ready = pool.PORT(n, bready);                                                                       \
            now.b.payload = {static_cast<uint32_t>(pool.PORT(n, bid)), pool.PORT(n, bresp)};                          \
        }                                                                                                             \
        Bank &bank = *device.banks[n];                                                                                \
        if (const char *rule = bank.rules.see(now)) blame(device, "bus of bank " #n, rule);                           \
        bank.memory.see(now, device.cycle);                                                                           \
    }

// The bus after the clock edge.
#define DRIVE(n)                                                                                                      \
    {                                                                                                                 \
        auto &memory = device.banks[n]->memory;                                                                       \
        const bool data = memory.r_valid;                                                                             \
        memory.drive(device.cycle);                                                                                   \
        pool.PORT(n, arready) = memory.ar_ready;                                                                      \
        pool.PORT(n, awready) = memory.aw_ready;                                                                      \
        pool.PORT(n, wready) = memory.w_ready;                                                                        \
        if ((pool.PORT(n, rvalid) = memory.r_valid) && !data) {                                                       \
            pool.PORT(n, rid) = memory.r.id;                                                                          \
            pool.PORT(n, rlast) = memory.r.last;                                                                      \
            std::memcpy(&pool.PORT(n, rdata), memory.line(), LINE_BYTES);                                             \
        }                                                                                                             \
        if ((pool.PORT(n, bvalid) = memory.b_valid)) pool.PORT(n, bid) = memory.b.id;                                 \
    }

#define CORE_MAKE(n) device->cores[n] = std::make_unique<Vcore>(&device->context);

template <typename Wire> const uint8_t *bytes_of(const Wire &wire) { return reinterpret_cast<const uint8_t *>(&wire); }

void blame(Device &device, const char *where, const char *rule) {
    if (!device.broken.empty()) return;
    char text[200];
    std::snprintf(text, sizeof text, "%s, cycle %llu: %s", where, static_cast<unsigned long long>(device.cycle), rule);
    device.broken = text;
}

// Takes a wire's value to its other end; whether that is news there.
template <typename Wire> bool pass(Wire &there, const Wire &here) {
    if (!std::memcmp(&there, &here, sizeof there)) return false;
    there = here;
    return true;
}

#define CORE_RESET(n) device.cores[n]->rst = reset;
#define CORE_CLOCK(n) device.cores[n]->clk = level;
#define CORE_EVAL(n) device.cores[n]->eval();
#define GO_IN(n, name) news |= pass(device.cores[n]->name, pool.CORE_PORT(n, name));
#define GO_OUT(n, name) news |= pass(pool.CORE_PORT(n, name), device.cores[n]->name);
#define CORE_IN(n)                                                                                                    \
    {                                                                                                                 \
        bool news = false;                                                                                            \
        TO_CORE(GO_IN, n)                                                                                             \
        if (news) device.cores[n]->eval();                                                                            \
    }
#define CORE_OUT(n) FROM_CORE(GO_OUT, n)

// Evaluates everything, and again as long as anything changes at the wires between the pool and its cores.
void settle(Device &device) {
    Vpool &pool = *device.pool;
    FOR_CORES(CORE_EVAL)
    for (int left = 100; left; --left) {
        bool news = left == 100;
        FOR_CORES(CORE_OUT)
        if (!news) return;
        pool.eval();
        FOR_CORES(CORE_IN)
    }
    ++device.endless;
}

void clock(Device &device, int level) {
    device.pool->clk = level;
    FOR_CORES(CORE_CLOCK)
}

void attach(Device &device) {
    Vpool &pool = *device.pool;
    FOR_BANKS(DRIVE)
}

// The clock's rising edge. All models see what stood at their inputs before it.
void edge(Device &device) {
    clock(device, 1);
    device.pool->eval();
    FOR_CORES(CORE_EVAL)
    clock(device, 0);
}

void set_reset(Device &device, int reset) {
    device.pool->rst = reset;
    FOR_CORES(CORE_RESET)
}

void judge_host(Device &device) {
    const Vpool &pool = *device.pool;
    const uint32_t written = pool.HOST(wdata), read = pool.HOST(rdata);
    const uint8_t strobe = pool.HOST(wstrb);
    Cycle now;
    now.ar = {!!pool.HOST(arvalid), !!pool.HOST(arready), {0, pool.HOST(araddr)}};
    now.aw = {!!pool.HOST(awvalid), !!pool.HOST(awready), {0, pool.HOST(awaddr)}};
    now.w = {!!pool.HOST(wvalid), !!pool.HOST(wready), {}, bytes_of(written), &strobe};
    now.r = {!!pool.HOST(rvalid), !!pool.HOST(rready), {0, pool.HOST(rresp)}, bytes_of(read)};
    now.b = {!!pool.HOST(bvalid), !!pool.HOST(bready), {0, pool.HOST(bresp)}};
    if (const char *rule = device.host_rules.see(now)) blame(device, "register bus", rule);
}

// One clock cycle. Outputs were settled at the end of the one before.
void tick(Device &device) {
    const Vpool &pool = *device.pool;
    FOR_BANKS(SAMPLE)
    judge_host(device);
    if (!device.broken.empty()) return;
    edge(device);
    ++device.cycle;
    attach(device);
    settle(device);
}

constexpr int LIMIT = 1000;  // cycles in which a register access must be answered
constexpr int BROKEN = -2;   // see corepool_broken

// How many cycles the host lets pass before it does what it could do now.
uint32_t hesitation(Device &device) { return device.disturbed ? device.random.below(4) : 0; }

}  // namespace

extern "C" {

void *corepool_open(uint8_t *const *banks, uint64_t bank_bytes) {
    auto *device = new Device;
    device->context.fatalOnError(false);
    device->pool = std::make_unique<Vpool>(&device->context);
    for (int bank = 0; bank < BANKS; ++bank)
        device->banks[bank] = std::make_unique<Bank>(bank, banks[bank], bank_bytes);
    FOR_CORES(CORE_MAKE)
    attach(*device);
    set_reset(*device, 1);
    for (int count = 0; count < 4; ++count) {
        settle(*device);
        edge(*device);
    }
    set_reset(*device, 0);
    settle(*device);
    return device;
}

void corepool_close(void *handle) { delete static_cast<Device *>(handle); }

uint64_t corepool_cycle(void *handle) { return static_cast<Device *>(handle)->cycle; }

// Accesses beyond a bank, and loops of wires without end.
uint64_t corepool_outside(void *handle) {
    const Device &device = *static_cast<Device *>(handle);
    uint64_t count = device.endless;
    for (const auto &bank : device.banks) count += bank->memory.outside();
    return count;
}

// The first rule of a bus that was broken, or an empty text. Nothing runs any more then.
const char *corepool_broken(void *handle) { return static_cast<Device *>(handle)->broken.c_str(); }

// Bursts that banks were asked for and have not answered.
uint64_t corepool_open_bursts(void *handle) {
    uint64_t count = 0;
    for (const auto &bank : static_cast<Device *>(handle)->banks) count += bank->rules.open();
    return count;
}

// From now on the memories hold back and reorder at random, and the host hesitates; 0: all is on time again.
void corepool_disturb(void *handle, uint64_t seed) {
    Device &device = *static_cast<Device *>(handle);
    device.disturbed = seed != 0;
    device.random = Random(seed);
    uint64_t number = 0;
    for (auto &bank : device.banks) bank->memory.disturb(seed ? seed * BANKS + ++number : 0);
    attach(device);
    settle(device);
}

int corepool_interrupt(void *handle) { return static_cast<Device *>(handle)->pool->__SYM__interrupt; }

// Until the interrupt is raised, at most so many cycles; returns whether it is, or BROKEN.
int corepool_run(void *handle, uint64_t cycles) {
    Device &device = *static_cast<Device *>(handle);
    for (; cycles && !device.pool->__SYM__interrupt && device.broken.empty(); --cycles) tick(device);
    return device.broken.empty() ? device.pool->__SYM__interrupt : BROKEN;
}

// The response of AXI4-Lite (0: done), -1 if there is none, or BROKEN.
int corepool_write(void *handle, uint32_t place, uint32_t value) {
    Device &device = *static_cast<Device *>(handle);
    Vpool &pool = *device.pool;
    pool.HOST(awaddr) = place;
    pool.HOST(wdata) = value;
    pool.HOST(wstrb) = 15;
    uint32_t address = hesitation(device), data = hesitation(device), answer = hesitation(device);
    bool address_taken = false, data_taken = false;
    int response = -1;
    for (int left = LIMIT; left && response == -1; --left) {
        pool.HOST(awvalid) = !address_taken && !address;
        pool.HOST(wvalid) = !data_taken && !data;
        pool.HOST(bready) = !answer;
        settle(device);
        address_taken |= pool.HOST(awvalid) && pool.HOST(awready);
        data_taken |= pool.HOST(wvalid) && pool.HOST(wready);
        if (pool.HOST(bvalid) && pool.HOST(bready)) response = pool.HOST(bresp);
        for (uint32_t *wait : {&address, &data}) *wait -= *wait != 0;
        answer -= answer && pool.HOST(bvalid);
        tick(device);
        if (!device.broken.empty()) response = BROKEN;
    }
    pool.HOST(awvalid) = pool.HOST(wvalid) = pool.HOST(bready) = 0;
    settle(device);
    return response;
}

int corepool_read(void *handle, uint32_t place, uint32_t *value) {
    Device &device = *static_cast<Device *>(handle);
    Vpool &pool = *device.pool;
    pool.HOST(araddr) = place;
    uint32_t address = hesitation(device), answer = hesitation(device);
    bool taken = false;
    int response = -1;
    for (int left = LIMIT; left && response == -1; --left) {
        pool.HOST(arvalid) = !taken && !address;
        pool.HOST(rready) = !answer;
        settle(device);
        taken |= pool.HOST(arvalid) && pool.HOST(arready);
        if (pool.HOST(rvalid) && pool.HOST(rready)) {
            response = pool.HOST(rresp);
            *value = pool.HOST(rdata);
        }
        address -= address != 0;
        answer -= answer && pool.HOST(rvalid);
        tick(device);
        if (!device.broken.empty()) response = BROKEN;
    }
    pool.HOST(arvalid) = pool.HOST(rready) = 0;
    settle(device);
    return response;
}
}
