/* Cycles to microseconds, and the cycles of an inference. */
#include "stopwatch.h"

#include "division.h"
#include "inference.h"
#include "port.h"

uint64_t stopwatch_microseconds(void) {
    uint64_t seconds = port_cycles();
    uint64_t rest = divide(&seconds, port_clock_hz());
    rest *= 1000000u;
    (void)divide(&rest, port_clock_hz());
    return seconds * 1000000u + rest;
}

uint64_t stopwatch_inference(void) {
    const uint64_t start = port_cycles();
    const uint32_t lap_start = port_lap();
    inference_run();
    const uint32_t lap = port_lap() - lap_start;
    const uint64_t cycles = port_cycles() - start;
    /* The lap is the exact count and may have wrapped; the other, a little longer, says how often. */
    return cycles - ((uint32_t)cycles - lap);
}
