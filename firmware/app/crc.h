/* CRC-32 of frames, zlib's polynomial and bit order, a byte at a time. */
#ifndef MICROSTILL_CRC_H
#define MICROSTILL_CRC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The register starts at CRC_START; its complement is the CRC. */
#define CRC_START 0xffffffffu

/* The register after bytes and then their own CRC, the lowest byte first. */
#define CRC_OF_ANY_WITH_ITS_OWN 0xdebb20e3u

uint32_t crc_add(uint32_t crc, uint8_t byte);

#ifdef __cplusplus
}
#endif

#endif
