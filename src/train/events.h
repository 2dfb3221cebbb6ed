/* events.h: training curves as TensorBoard reads them.
 *
 * An event file is a sequence of TFRecords, each holding one protocol buffer `Event`. The name must contain "tfevents"
 * for TensorBoard to find it. Formats: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto. */
#ifndef SP_TRAIN_EVENTS_H
#define SP_TRAIN_EVENTS_H

#include "softprompt.h"

typedef struct sp_events sp_events;

/* Keeps the first `offset` bytes of `path`; 0: a new file, begun with the record that says its version.
 * MISMATCH: the file is shorter. wall_time: seconds since 1970. */
sp_status sp_events_open(sp_events **out, const char *path, uint64_t offset, double wall_time);

/* A point of the curve `tag` ("train/loss"). Stored as f32. On failure the file ends with the record before. */
sp_status sp_events_scalar(sp_events *events, const char *tag, size_t step, double value, double wall_time);
sp_status sp_events_sync(sp_events *events);        /* what was written survives a power cut */
uint64_t sp_events_offset(const sp_events *events); /* for the checkpoint */
void sp_events_close(sp_events *events);            /* NULL is fine */

#endif
