/* export.c: a net as safetensors files, and the program that runs them. All tensors are held at once, zeros and all. */
#include "lab/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/status.h"
#include "format/json.h"
#include "format/safetensors.h"

enum { N_EXAMPLES = 8, EXAMPLE_STREAM = 0x6578616d }; /* "exam" */

static const char READER[] =
    "\"\"\"Runs the transformer of this directory:  echo '[[[0.3, 0.7]]]' | python run.py\n"
    "\n"
    "Standard input: inputs (n, len, d) as JSON, numbers in [0, 1]; standard output: what it answers, of the same shape.\n"
    "\"\"\"\n"
    "import json\n"
    "import os\n"
    "import sys\n"
    "\n"
    "import torch\n"
    "from safetensors.torch import load_file\n"
    "\n"
    "here = os.path.dirname(os.path.abspath(__file__))\n"
    "net = load_file(os.path.join(here, \"model.safetensors\"))\n"
    "prompt = load_file(os.path.join(here, \"prompt.safetensors\"))[\"prompt\"]\n"
    "first, n_out = (int(number) for number in net[\"output\"].flatten())\n"
    "n_layers = 1 + max(int(name.split(\".\")[1]) for name in net if name.startswith(\"layers.\"))\n"
    "\n"
    "\n"
    "def run(x):\n"
    "    z = net[\"embedding\"] @ torch.cat([prompt, x]).T + net[\"positions\"]\n"
    "    for i in range(n_layers):\n"
    "        if f\"layers.{i}.w1\" in net:\n"
    "            w1, b1, w2 = (net[f\"layers.{i}.{part}\"] for part in (\"w1\", \"b1\", \"w2\"))\n"
    "            z = z + w2 @ torch.relu(w1 @ z + b1.T)\n"
    "        else:\n"
    "            q, k, v, o = (net[f\"layers.{i}.{part}\"] for part in \"qkvo\")\n"
    "            z = z + o @ (v @ z) @ torch.softmax((k @ z).T @ (q @ z), dim=0)\n"
    "    return z[first:first + n_out, len(prompt):].T\n"
    "\n"
    "\n"
    "print(json.dumps([run(torch.tensor(x, dtype=torch.float64)).tolist() for x in json.load(sys.stdin)]))\n";

/* Tensors as they are visited, copied. */
typedef struct collection {
    sp_st_tensor *tensors;
    size_t n, capacity;
} collection;

static void free_collection(collection *c)
{
    for (size_t i = 0; i < c->n; i++) {
        free((void *)(uintptr_t)c->tensors[i].name);
        free((void *)(uintptr_t)c->tensors[i].data);
    }
    free(c->tensors);
}

static sp_status collect(void *user, const char *name, const double *values, size_t n_rows, size_t n_columns)
{
    collection *c = user;
    size_t n_bytes = n_rows * n_columns * sizeof *values;
    if (c->n == c->capacity) {
        size_t larger = c->capacity ? 2 * c->capacity : 64;
        sp_st_tensor *moved = realloc(c->tensors, larger * sizeof *moved);
        if (!moved) return sp_fail_no_memory(larger * sizeof *moved);
        c->tensors = moved;
        c->capacity = larger;
    }
    char *own_name = strdup(name);
    double *data = malloc(n_bytes + 1);
    if (!own_name || !data) {
        free(own_name);
        free(data);
        return sp_fail_no_memory(n_bytes);
    }
    memcpy(data, values, n_bytes);
    c->tensors[c->n++] = (sp_st_tensor){
        .name = own_name, .type = SP_F64, .n_dims = 2, .shape = {n_rows, n_columns}, .data = data, .n_bytes = n_bytes};
    return SP_OK;
}

static sp_status write_model(const char *dir, const sp_universal *u)
{
    collection c = {0};
    char *path = sp_path_join(dir, "model.safetensors");
    sp_status st = path ? sp_net_visit(u->net, collect, &c) : SP_ERR_MEMORY;
    if (!st) st = sp_safetensors_write(path, c.tensors, c.n, NULL, 0);
    free_collection(&c);
    free(path);
    return st;
}

static sp_status write_prompt(const char *dir, const sp_universal *u, const double *prompt, const char *function)
{
    const sp_metadata_item metadata = {"function", function};
    const size_t d = u->shape.d;
    const sp_st_tensor tensor = {.name = "prompt",
                                 .type = SP_F64,
                                 .n_dims = 2,
                                 .shape = {u->num_virtual_tokens, d},
                                 .data = prompt,
                                 .n_bytes = u->num_virtual_tokens * d * sizeof *prompt};
    char *path = sp_path_join(dir, "prompt.safetensors");
    sp_status st = path ? sp_safetensors_write(path, &tensor, 1, &metadata, 1) : SP_ERR_MEMORY;
    free(path);
    return st;
}

static sp_status write_reader(const char *dir)
{
    const sp_bytes text = {READER, sizeof READER - 1};
    char *path = sp_path_join(dir, "run.py");
    sp_status st = path ? sp_write_file_atomic(path, &text, 1) : SP_ERR_MEMORY;
    free(path);
    return st;
}

/* n inputs of (len, d) numbers, as nested arrays. */
static json_t *numbers_json(const double *values, size_t n, size_t len, size_t d)
{
    json_t *all = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *input = json_array();
        for (size_t l = 0; l < len; l++) {
            json_t *token = json_array();
            for (size_t r = 0; r < d; r++, values++) json_array_append_new(token, json_real(*values));
            json_array_append_new(input, token);
        }
        json_array_append_new(all, input);
    }
    return all;
}

static sp_status write_examples(const char *dir, const sp_universal *u, const double *prompt, uint64_t seed)
{
    const size_t d = u->shape.d, len = u->shape.len;
    double x[N_EXAMPLES * d * len], y[N_EXAMPLES * d * len];
    sp_rng rng = sp_rng_seed(seed, EXAMPLE_STREAM);
    for (size_t i = 0; i < N_EXAMPLES * d * len; i++) x[i] = sp_rng_uniform(&rng);
    sp_status st = sp_net_forward(y, NULL, u->net, prompt, x, N_EXAMPLES, false);
    if (st) return st;
    json_t *object = json_pack("{s:o, s:o}", "x", numbers_json(x, N_EXAMPLES, len, d), "y", numbers_json(y, N_EXAMPLES, len, d));
    char *path = sp_path_join(dir, "examples.json");
    st = !path ? SP_ERR_MEMORY : object ? sp_json_write(object, path) : sp_json_fail_no_memory();
    json_decref(object);
    free(path);
    return st;
}

sp_status sp_universal_export(const char *dir, const sp_universal *universal, const double *prompt, const char *function,
                              uint64_t seed)
{
    sp_status st = sp_make_directory(dir);
    if (!st) st = write_model(dir, universal);
    if (!st) st = write_prompt(dir, universal, prompt, function);
    if (!st) st = write_examples(dir, universal, prompt, seed);
    return st ? st : write_reader(dir);
}
