/* crc32c.h: the Castagnoli checksum of TFRecord files and checkpoints. RFC 3720, appendix B.4. */
#ifndef SP_BASE_CRC32C_H
#define SP_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The checksum of what `crc` covers followed by `bytes`; 0 covers nothing. So a file may be checked in pieces. */
uint32_t sp_crc32c(uint32_t crc, const void *bytes, size_t n_bytes);

#endif
