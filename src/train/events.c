/* events.c: TFRecord framing and the three messages of event.proto and summary.proto that a curve needs, by hand:
 *
 *   record   length u64 | masked crc of length u32 | bytes | masked crc of bytes u32         little-endian
 *   Event    1 wall_time double | 2 step int64 | 3 file_version string | 5 summary Summary
 *   Summary  1 value Value          Value  1 tag string | 2 simple_value float
 *
 * Protocol buffers put lengths before contents, so messages are built inside out. */
#include "train/events.h"

#include <stdlib.h>
#include <string.h>

#include "base/append_file.h"
#include "base/buffer.h"
#include "base/crc32c.h"
#include "base/status.h"

enum { WIRE_VARINT = 0, WIRE_I64 = 1, WIRE_LEN = 2, WIRE_I32 = 5 };

struct sp_events {
    sp_append_file *file;
    sp_buffer value, summary, event, record; /* kept from record to record for their memory */
};

static sp_status add_little_endian(sp_buffer *out, uint64_t bits, size_t n_bytes)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < n_bytes; i++) bytes[i] = (uint8_t)(bits >> 8 * i);
    return sp_buffer_add(out, bytes, n_bytes);
}

static sp_status add_varint(sp_buffer *out, uint64_t value)
{
    uint8_t bytes[10];
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) bytes[n++] = (uint8_t)(value | 0x80);
    bytes[n++] = (uint8_t)value;
    return sp_buffer_add(out, bytes, n);
}

static sp_status add_key(sp_buffer *out, unsigned field, unsigned wire)
{
    return add_varint(out, field << 3 | wire);
}

static sp_status add_bytes_field(sp_buffer *out, unsigned field, const char *bytes, size_t n_bytes)
{
    sp_status st;
    if ((st = add_key(out, field, WIRE_LEN)) || (st = add_varint(out, n_bytes))) return st;
    return sp_buffer_add(out, bytes, n_bytes);
}

static sp_status add_double_field(sp_buffer *out, unsigned field, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    sp_status st = add_key(out, field, WIRE_I64);
    return st ? st : add_little_endian(out, bits, sizeof bits);
}

static sp_status add_float_field(sp_buffer *out, unsigned field, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    sp_status st = add_key(out, field, WIRE_I32);
    return st ? st : add_little_endian(out, bits, sizeof bits);
}

/* A checksum of data that holds checksums is weak; TFRecord therefore stores it rotated and shifted. */
static uint32_t masked_crc(const void *bytes, size_t n_bytes)
{
    uint32_t crc = sp_crc32c(0, bytes, n_bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/* events->event as one record, in one write. */
static sp_status write_event(sp_events *events)
{
    sp_buffer *record = &events->record;
    const sp_buffer *event = &events->event;
    sp_status st;
    sp_buffer_clear(record);
    if ((st = add_little_endian(record, event->n_bytes, 8)) || (st = add_little_endian(record, masked_crc(record->bytes, 8), 4)) ||
        (st = sp_buffer_add(record, event->bytes, event->n_bytes)) ||
        (st = add_little_endian(record, masked_crc(event->bytes, event->n_bytes), 4)))
        return st;
    return sp_append_file_add(events->file, record->bytes, record->n_bytes);
}

static sp_status write_version(sp_events *events, double wall_time)
{
    static const char version[] = "brain.Event:2";
    sp_status st;
    if ((st = add_double_field(&events->event, 1, wall_time)) ||
        (st = add_bytes_field(&events->event, 3, version, sizeof version - 1)))
        return st;
    return write_event(events);
}

sp_status sp_events_open(sp_events **out, const char *path, uint64_t offset, double wall_time)
{
    sp_events *events = calloc(1, sizeof *events);
    sp_status st;
    *out = NULL;
    if (!events) return sp_fail_no_memory(sizeof *events);
    if ((st = sp_append_file_open(&events->file, path, offset)) || (offset == 0 && (st = write_version(events, wall_time)))) {
        sp_events_close(events);
        return st;
    }
    *out = events;
    return SP_OK;
}

sp_status sp_events_scalar(sp_events *events, const char *tag, size_t step, double value, double wall_time)
{
    sp_buffer *event = &events->event, *summary = &events->summary, *point = &events->value;
    sp_status st;
    sp_buffer_clear(event);
    sp_buffer_clear(summary);
    sp_buffer_clear(point);
    if ((st = add_bytes_field(point, 1, tag, strlen(tag))) || (st = add_float_field(point, 2, (float)value)) ||
        (st = add_bytes_field(summary, 1, point->bytes, point->n_bytes)) || (st = add_double_field(event, 1, wall_time)) ||
        (st = add_key(event, 2, WIRE_VARINT)) || (st = add_varint(event, step)) ||
        (st = add_bytes_field(event, 5, summary->bytes, summary->n_bytes)))
        return st;
    return write_event(events);
}

sp_status sp_events_sync(sp_events *events)
{
    return sp_append_file_sync(events->file);
}

uint64_t sp_events_offset(const sp_events *events)
{
    return sp_append_file_offset(events->file);
}

void sp_events_close(sp_events *events)
{
    if (!events) return;
    sp_append_file_close(events->file);
    sp_buffer_free(&events->value);
    sp_buffer_free(&events->summary);
    sp_buffer_free(&events->event);
    sp_buffer_free(&events->record);
    free(events);
}
