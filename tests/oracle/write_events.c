/* write_events.c: writes the event file that events.py reads: a curve of 300 points that was interrupted after 120, with the
 * checkpoint at 100, and gone on with. Usage: write_events FILE */
#include <stdio.h>

#include "train/events.h"

static sp_status add_points(sp_events *events, size_t first, size_t end)
{
    sp_status st = SP_OK;
    for (size_t step = first; step < end && !st; step++)
        if (!(st = sp_events_scalar(events, "train/loss", step, 1.0 / (double)(step + 1), 1.7e9 + (double)step)))
            st = sp_events_scalar(events, "train/learning_rate", step * 1000000, 0.02, 1.7e9 + (double)step);
    return st;
}

int main(int argc, char **argv)
{
    sp_events *events;
    if (argc != 2) return 2;
    sp_status st = sp_events_open(&events, argv[1], 0, 1.7e9);
    if (!st) st = add_points(events, 0, 100);
    uint64_t offset = st ? 0 : sp_events_offset(events);
    if (!st) st = add_points(events, 100, 120);
    if (events) sp_events_close(events);
    if (!st) st = sp_events_open(&events, argv[1], offset, 0);
    if (!st) st = add_points(events, 100, 300);
    if (!st) sp_events_close(events);
    if (st) fprintf(stderr, "write_events: %s\n", sp_message());
    return st ? 1 : 0;
}
