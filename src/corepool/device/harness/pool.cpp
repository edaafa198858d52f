// Runs the pool's Verilog with a memory at each bank, for a host that speaks through a few C functions.
// It must not know registers, leases or streams. ports.h is written by the builder: Verilator's names, sizes, latencies,
// and the wires between the pool and its cores, which are models of their own (CORES 0: they are within the pool's).

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>

#include "Vpool.h"
#include "ports.h"
#include "verilated.h"
#if CORES
#include "Vcore.h"
#endif

namespace {

struct Read {
    uint64_t due;
    uint32_t id;
    uint8_t line[LINE_BYTES];
};

struct Address {
    uint32_t id;
    uint64_t place;
};

struct Data {
    uint8_t line[LINE_BYTES];
    uint8_t strobe[(LINE_BYTES + 7) / 8];
};

struct Answer {
    uint64_t due;
    uint32_t id;
};

// A bank: takes a line a cycle each way, answers after fixed latencies.
struct Bank {
    uint8_t *bytes = nullptr;
    std::deque<Read> reads;
    std::deque<Address> addresses;
    std::deque<Data> data;
    std::deque<Answer> answers;
};

struct Device {
    VerilatedContext context;
    std::unique_ptr<Vpool> pool;
#if CORES
    std::unique_ptr<Vcore> cores[CORES];
#endif
    Bank banks[BANKS];
    uint64_t bank_bytes = 0;
    uint64_t cycle = 0;    // cycles since reset
    uint64_t outside = 0;  // accesses beyond a bank
};

// What stands at the bus in this cycle; what of it changes memory happens at the clock edge.
#define SAMPLE(n)                                                                                                     \
    {                                                                                                                 \
        Bank &bank = device.banks[n];                                                                                 \
        if (pool.PORT(n, arvalid)) {                                                                                  \
            Read read{device.cycle + READ_GAP, static_cast<uint32_t>(pool.PORT(n, arid)), {}};                        \
            const uint64_t place = pool.PORT(n, araddr);                                                              \
            if (place + LINE_BYTES <= device.bank_bytes)                                                              \
                std::memcpy(read.line, bank.bytes + place, LINE_BYTES);                                               \
            else                                                                                                      \
                ++device.outside;                                                                                     \
            bank.reads.push_back(read);                                                                               \
        }                                                                                                             \
        if (pool.PORT(n, awvalid))                                                                                    \
            bank.addresses.push_back({static_cast<uint32_t>(pool.PORT(n, awid)), pool.PORT(n, awaddr)});              \
        if (pool.PORT(n, wvalid)) {                                                                                   \
            Data data;                                                                                                \
            std::memcpy(data.line, &pool.PORT(n, wdata), LINE_BYTES);                                                 \
            std::memcpy(data.strobe, &pool.PORT(n, wstrb), sizeof data.strobe);                                       \
            bank.data.push_back(data);                                                                                \
        }                                                                                                             \
        taken_read[n] = pool.PORT(n, rvalid) && pool.PORT(n, rready);                                                 \
        taken_answer[n] = pool.PORT(n, bvalid) && pool.PORT(n, bready);                                               \
    }

// The bus after the clock edge.
#define DRIVE(n)                                                                                                      \
    {                                                                                                                 \
        Bank &bank = device.banks[n];                                                                                 \
        if (taken_read[n]) pool.PORT(n, rvalid) = 0;                                                                  \
        if (!pool.PORT(n, rvalid) && !bank.reads.empty() && bank.reads.front().due <= device.cycle) {                 \
            pool.PORT(n, rvalid) = 1;                                                                                 \
            pool.PORT(n, rid) = bank.reads.front().id;                                                                \
            std::memcpy(&pool.PORT(n, rdata), bank.reads.front().line, LINE_BYTES);                                   \
            bank.reads.pop_front();                                                                                   \
        }                                                                                                             \
        if (taken_answer[n]) pool.PORT(n, bvalid) = 0;                                                                \
        if (!pool.PORT(n, bvalid) && !bank.answers.empty() && bank.answers.front().due <= device.cycle) {             \
            pool.PORT(n, bvalid) = 1;                                                                                 \
            pool.PORT(n, bid) = bank.answers.front().id;                                                              \
            bank.answers.pop_front();                                                                                 \
        }                                                                                                             \
    }

#define CORE_MAKE(n) device->cores[n] = std::make_unique<Vcore>(&device->context);
#define ATTACH(n)                                                                                                     \
    pool.PORT(n, arready) = pool.PORT(n, awready) = pool.PORT(n, wready) = pool.PORT(n, rlast) = 1;

void store(Device &device, Bank &bank) {
    while (!bank.addresses.empty() && !bank.data.empty()) {
        const Address &where = bank.addresses.front();
        const Data &data = bank.data.front();
        if (where.place + LINE_BYTES <= device.bank_bytes) {
            for (unsigned byte = 0; byte < LINE_BYTES; ++byte)
                if (data.strobe[byte / 8] >> (byte % 8) & 1) bank.bytes[where.place + byte] = data.line[byte];
        } else {
            ++device.outside;
        }
        bank.answers.push_back({device.cycle + WRITE_GAP, where.id});
        bank.addresses.pop_front();
        bank.data.pop_front();
    }
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
    ++device.outside;  // an endless loop of wires: no result may be trusted
}

void clock(Device &device, int level) {
    device.pool->clk = level;
    FOR_CORES(CORE_CLOCK)
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

// One clock cycle. Outputs were settled at the end of the one before.
void tick(Device &device) {
    Vpool &pool = *device.pool;
    bool taken_read[BANKS], taken_answer[BANKS];
    FOR_BANKS(SAMPLE)
    for (Bank &bank : device.banks) store(device, bank);
    edge(device);
    ++device.cycle;
    FOR_BANKS(DRIVE)
    settle(device);
}

constexpr int LIMIT = 1000;  // cycles in which a register access must be answered

}  // namespace

extern "C" {

void *corepool_open(uint8_t *const *banks, uint64_t bank_bytes) {
    auto *device = new Device;
    device->context.fatalOnError(false);
    device->pool = std::make_unique<Vpool>(&device->context);
    device->bank_bytes = bank_bytes;
    for (int bank = 0; bank < BANKS; ++bank) device->banks[bank].bytes = banks[bank];
    Vpool &pool = *device->pool;
    FOR_CORES(CORE_MAKE)
    FOR_BANKS(ATTACH)
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

uint64_t corepool_outside(void *handle) { return static_cast<Device *>(handle)->outside; }

int corepool_interrupt(void *handle) { return static_cast<Device *>(handle)->pool->__SYM__interrupt; }

// Until the interrupt is raised, at most so many cycles; returns whether it is.
int corepool_run(void *handle, uint64_t cycles) {
    Device &device = *static_cast<Device *>(handle);
    for (; cycles && !device.pool->__SYM__interrupt; --cycles) tick(device);
    return device.pool->__SYM__interrupt;
}

// The response of AXI4-Lite (0: done), or -1 if there is none.
int corepool_write(void *handle, uint32_t place, uint32_t value) {
    Device &device = *static_cast<Device *>(handle);
    Vpool &pool = *device.pool;
    pool.HOST(awaddr) = place;
    pool.HOST(wdata) = value;
    pool.HOST(wstrb) = 15;
    pool.HOST(awvalid) = pool.HOST(wvalid) = pool.HOST(bready) = 1;
    settle(device);
    int response = -1;
    for (int left = LIMIT; left && response < 0; --left) {
        const bool address = pool.HOST(awvalid) && pool.HOST(awready), data = pool.HOST(wvalid) && pool.HOST(wready);
        if (pool.HOST(bvalid)) response = pool.HOST(bresp);
        tick(device);
        if (address) pool.HOST(awvalid) = 0;
        if (data) pool.HOST(wvalid) = 0;
        settle(device);
    }
    pool.HOST(awvalid) = pool.HOST(wvalid) = pool.HOST(bready) = 0;
    settle(device);
    return response;
}

int corepool_read(void *handle, uint32_t place, uint32_t *value) {
    Device &device = *static_cast<Device *>(handle);
    Vpool &pool = *device.pool;
    pool.HOST(araddr) = place;
    pool.HOST(arvalid) = pool.HOST(rready) = 1;
    settle(device);
    int response = -1;
    for (int left = LIMIT; left && response < 0; --left) {
        const bool taken = pool.HOST(arvalid) && pool.HOST(arready);
        if (pool.HOST(rvalid)) {
            response = pool.HOST(rresp);
            *value = pool.HOST(rdata);
        }
        tick(device);
        if (taken) pool.HOST(arvalid) = 0;
        settle(device);
    }
    pool.HOST(arvalid) = pool.HOST(rready) = 0;
    settle(device);
    return response;
}
}
