/* crc32c.c: four bits at a time. What is checked here is written at most once a training step and holds a few hundred
 * kilobytes, some milliseconds; a table of sixteen entries can be checked by hand and needs no initialisation. */
#include "base/crc32c.h"

/* Entry i: the remainder of i, four bits of message, under the reflected polynomial 0x82f63b78. */
static const uint32_t remainders[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

uint32_t sp_crc32c(uint32_t crc, const void *bytes, size_t n_bytes)
{
    const uint8_t *byte = bytes;
    crc = ~crc;
    for (size_t i = 0; i < n_bytes; i++) {
        crc ^= byte[i];
        crc = (crc >> 4) ^ remainders[crc & 15];
        crc = (crc >> 4) ^ remainders[crc & 15];
    }
    return ~crc;
}
