// SPDX-License-Identifier: GPL-2.0-or-later
/* Opens the images of a chain, from the active layer down to the base. */
#include <errno.h>
#include <qchain/chain.h>
#include <qchain/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Each layer costs a handful of system calls and the reads of image_open(), so
 * that a thousand of them open at once. A layer is the same image as another
 * when both are one block device or one inode, whatever their names. That is
 * looked up by name before a layer is opened, because its locks would collide
 * with our own, and compared again with what was opened.
 */
struct chain_builder {
	const struct chain_open_options *options;
	struct backing_policy policy;
	struct chain *chain;
	struct image_ident *idents; /* of the chain's layers */
	u32 space; /* layers that fit */
};

static int check_loop(const struct chain_builder *b, const char *path,
		      const struct image_ident *ident, struct qc_err *err)
{
	const struct chain_layer *layers = b->chain->layers;
	u32 nr = b->chain->nr_layers;

	for (u32 i = 0; i < nr; i++)
		if (image_ident_same(&b->idents[i], ident))
			return qc_err_set(err, -ELOOP, "%s: is already in the chain (layer %u, "
					  "%s), each image may be there once; rebase %s", path, i,
					  layers[i].path, layers[nr - 1].path);
	return 0;
}

/* ---- node names -------------------------------------------------------- */

/* Names are compared whole: zeroes follow them, and a chain has thousands. */
static bool name_taken(const struct chain *chain, const char *name)
{
	for (u32 i = 0; i < chain->nr_layers; i++)
		if (!memcmp(chain->layers[i].node_name, name, QC_MAX_NODE_NAME + 1))
			return true;
	return false;
}

/* What a QMP client need not quote; others become '_', also halves of UTF-8. */
static bool name_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       strchr("-._+", c);
}

/*
 * The last part of @path cut to 31 characters, ".N" in layer N where that is taken.
 * @name: QC_MAX_NODE_NAME + 1 bytes.
 */
static void choose_node_name(const struct chain *chain, const char *path, char *name)
{
	const char *slash = strrchr(path, '/');
	char base[QC_MAX_NODE_NAME + 1] = "", suffix[16];
	int len;

	len = snprintf(base, sizeof(base), "%.*s", QC_MAX_NODE_NAME, slash ? slash + 1 : path);
	len = min(len, (int)QC_MAX_NODE_NAME);
	for (int i = 0; i < len; i++)
		if (!name_char(base[i]))
			base[i] = '_';
	memcpy(name, base, sizeof(base));
	for (u32 n = chain->nr_layers; name_taken(chain, name); n++) {
		int tail = snprintf(suffix, sizeof(suffix), ".%u", n);

		snprintf(name, sizeof(base), "%.*s%s",
			 min(len, (int)QC_MAX_NODE_NAME - tail), base, suffix);
	}
}

/* ---- layers ------------------------------------------------------------ */

static int make_room(struct chain_builder *b, const char *path, struct qc_err *err)
{
	struct chain_layer *layers;
	struct image_ident *idents;
	u32 space = b->space ? b->space * 2 : 16;

	if (b->chain->nr_layers >= QC_MAX_CHAIN_DEPTH)
		return qc_err_set(err, -EMLINK, "%s: chain too deep (more than %u layers), at most "
				  "%u can be opened; merge some", path, QC_MAX_CHAIN_DEPTH,
				  QC_MAX_CHAIN_DEPTH);
	if (b->chain->nr_layers < b->space)
		return 0;
	layers = realloc(b->chain->layers, space * sizeof(*layers));
	if (layers)
		b->chain->layers = layers;
	idents = realloc(b->idents, space * sizeof(*idents));
	if (idents)
		b->idents = idents;
	if (!layers || !idents)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	b->space = space;
	return 0;
}

/* What was opened must be what was looked up (@before), and allowed. */
static int check_opened(const struct chain_builder *b, const struct io_dev *dev,
			const struct image_ident *before, struct image_ident *ident,
			struct qc_err *err)
{
	const struct chain *chain = b->chain;
	int ret = 0;

	*ident = dev->ident;
	if (!image_ident_same(ident, before))
		ret = check_loop(b, dev->path, ident, err);
	if (!ret && chain->nr_layers)
		ret = backing_check(&b->policy, dev, chain->layers[chain->nr_layers - 1].path, err);
	return ret;
}

static int open_dev(struct chain_builder *b, const char *path, struct io_dev **result,
		    struct qc_err *err)
{
	bool writes = !b->options->read_only && b->chain->nr_layers == 0;
	struct image_ident ident = {};
	int ret = 0;

	if (!image_ident_of(path, &ident)) /* else io_dev_open() finds the words */
		ret = check_loop(b, path, &ident, err);
	if (ret)
		return ret;
	ret = io_dev_open(path, (writes ? IO_DEV_WRITE : 0) |
			  (b->options->no_lock ? IO_DEV_NOLOCK : 0) |
			  (b->options->wait ? IO_DEV_WAIT : 0), result, err);
	if (ret)
		return ret;
	ret = check_opened(b, *result, &ident, &b->idents[b->chain->nr_layers], err);
	if (ret)
		io_dev_close(*result);
	return ret;
}

/* Rule D7: followed only when asked for by name, and never written. */
static int open_data_file(const struct chain_builder *b, struct image *img, struct qc_err *err)
{
	char *path;
	int ret;

	if (!img->data_file_name)
		return 0;
	if (!b->options->policy.allow_data_file)
		return qc_err_set(err, -EPERM, "%s: external data file not followed (%s), it may "
				  "be only with --allow-data-file and --read-only",
				  img->dev->path, img->data_file_name);
	ret = data_file_resolve(img, &b->policy, &path, err);
	if (ret)
		return ret;
	ret = io_dev_open(path, b->options->no_lock ? IO_DEV_NOLOCK : 0, &img->data_dev, err);
	free(path);
	return ret ? ret : backing_check(&b->policy, img->data_dev, img->dev->path, err);
}

static int add_layer(struct chain_builder *b, const char *path, enum image_format format,
		     struct qc_err *err)
{
	struct chain *chain = b->chain;
	bool writes = !b->options->read_only && chain->nr_layers == 0;
	struct chain_layer *layer;
	struct io_dev *dev;
	int ret;

	ret = make_room(b, path, err);
	if (!ret)
		ret = open_dev(b, path, &dev, err);
	if (ret)
		return ret;
	layer = &chain->layers[chain->nr_layers];
	memset(layer, 0, sizeof(*layer));
	ret = image_open(dev, format, writes ? IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS : 0,
			 &layer->img, err);
	if (ret)
		return ret;
	ret = open_data_file(b, layer->img, err);
	layer->path = ret ? NULL : strdup(path);
	if (!ret && !layer->path)
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	if (ret) {
		image_close(layer->img);
		return ret;
	}
	choose_node_name(chain, path, layer->node_name);
	chain->nr_layers++;
	return 0;
}

/* Say where in the chain @err happened: "top -> .. -> overlay, layer 3: ..." */
static int name_layer(const struct chain *chain, int ret, struct qc_err *err)
{
	const struct chain_layer *layers = chain->layers;
	u32 n = chain->nr_layers;

	if (n == 0)
		return ret;
	if (n == 1)
		qc_err_prefix(err, "below %s, layer 1", layers[0].node_name);
	else if (n == 2)
		qc_err_prefix(err, "below %s -> %s, layer 2", layers[0].node_name,
			      layers[1].node_name);
	else
		qc_err_prefix(err, "below %s -> .. -> %s, layer %u", layers[0].node_name,
			      layers[n - 1].node_name, n);
	return ret;
}

/* What the last one that is wanted stands on need not even be there. */
static bool is_enough(const struct chain_builder *b)
{
	return b->options->nr_layers && b->chain->nr_layers >= b->options->nr_layers;
}

static int add_layers(struct chain_builder *b, const char *top, struct qc_err *err)
{
	enum image_format format = b->options->top_format;
	struct chain *chain = b->chain;
	char *path = strdup(top);
	int ret = 0;

	if (!path)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", top);
	while (!ret && path) {
		ret = add_layer(b, path, format, err);
		free(path);
		path = NULL;
		if (!ret && !is_enough(b))
			ret = backing_resolve(chain->layers[chain->nr_layers - 1].img, &b->policy,
					      &path, &format, err);
	}
	free(path);
	return name_layer(chain, ret, err);
}

static int show_snapshot(struct chain *chain, const struct chain_open_options *options,
			 struct qc_err *err)
{
	struct image *img = chain->layers[0].img;

	if (!options->snapshot)
		return 0;
	if (!options->read_only)
		return qc_err_set(err, -EINVAL, "%s: internal snapshot \"%s\" cannot be written, "
				  "must be opened read-only", img->dev->path, options->snapshot);
	return image_use_snapshot(img, options->snapshot, err);
}

static int grow_top(struct chain *chain, u64 bytes, struct qc_err *err)
{
	struct image *img = chain->layers[0].img;

	if (bytes <= img->virtual_size)
		return 0;
	if (img->format == IMAGE_RAW ||
	    bytes > (u64)img->l1_size << image_l2_coverage_bits(img))
		return qc_err_set(err, -EINVAL, "%s: cannot be shown longer (%llu bytes)",
				  img->dev->path, (unsigned long long)bytes);
	img->virtual_size = bytes;
	return 0;
}

static int build_chain(struct chain_builder *b, const char *top, struct qc_err *err)
{
	int ret;

	/* Only what start sets belongs to the copy. */
	b->policy = b->options->policy;
	b->policy.top_dir = NULL;
	b->policy.top_vg_uuid = NULL;
	ret = backing_policy_start(&b->policy, top, err);
	if (ret)
		return ret;
	ret = add_layers(b, top, err);
	if (!ret)
		ret = show_snapshot(b->chain, b->options, err);
	if (!ret)
		ret = grow_top(b->chain, b->options->grow_to, err);
	backing_policy_exit(&b->policy);
	return ret;
}

int chain_open(const char *top, const struct chain_open_options *options,
	       struct chain **result, struct qc_err *err)
{
	struct chain_builder b = { .options = options };
	int ret;

	b.chain = calloc(1, sizeof(*b.chain));
	if (!b.chain)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", top);
	b.chain->read_only = options->read_only;
	ret = build_chain(&b, top, err);
	free(b.idents);
	if (ret) {
		chain_close(b.chain);
		return ret;
	}
	b.chain->virtual_size = b.chain->layers[0].img->virtual_size;
	*result = b.chain;
	return 0;
}

/* ---- once more ----------------------------------------------------------- */

/* Messages know @dev by its own path. */
static int reopen_dev(const struct io_dev *dev, struct io_dev **result, struct qc_err *err)
{
	char link[64];
	char *path = strdup(dev->path);
	int ret;

	if (!path)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", dev->path);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", dev->fd);
	ret = io_dev_open(link, 0, result, err);
	if (ret) {
		free(path);
		return qc_err_prefix(err, "%s", dev->path);
	}
	free((*result)->path);
	(*result)->path = path;
	return 0;
}

static int reopen_layer(const struct chain_layer *from, struct chain_layer *result,
			struct qc_err *err)
{
	struct io_dev *dev;
	int ret = reopen_dev(from->img->dev, &dev, err);

	if (!ret)
		ret = image_open(dev, from->img->format, 0, &result->img, err);
	if (ret)
		return ret;
	if (from->img->data_dev)
		ret = reopen_dev(from->img->data_dev, &result->img->data_dev, err);
	memcpy(result->node_name, from->node_name, sizeof(result->node_name));
	result->path = strdup(from->path);
	if (!ret && !result->path)
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", from->path);
	return ret;
}

int chain_reopen(const struct chain *of, u32 depth, struct chain **result, struct qc_err *err)
{
	struct chain *chain = calloc(1, sizeof(*chain));
	u32 nr = of->nr_layers - depth;
	int ret = 0;

	if (chain)
		chain->layers = calloc(nr, sizeof(*chain->layers));
	if (!chain || !chain->layers) {
		chain_close(chain);
		return qc_err_set(err, -ENOMEM, "%s: out of memory", of->layers[depth].path);
	}
	chain->read_only = true;
	for (; !ret && chain->nr_layers < nr; chain->nr_layers += !ret)
		ret = reopen_layer(&of->layers[depth + chain->nr_layers],
				   &chain->layers[chain->nr_layers], err);
	if (ret) {
		chain->nr_layers++; /* what is open of the last one */
		chain_close(chain);
		return ret;
	}
	chain->virtual_size = chain->layers[0].img->virtual_size;
	*result = chain;
	return 0;
}

void chain_close(struct chain *chain)
{
	if (!chain)
		return;
	for (u32 i = 0; i < chain->nr_layers; i++) {
		image_close(chain->layers[i].img);
		free(chain->layers[i].path);
	}
	free(chain->layers);
	free(chain);
}

u32 chain_block_bytes(const struct chain *chain)
{
	u32 bytes = SECTOR_SIZE;

	for (u32 i = 0; i < chain->nr_layers; i++)
		bytes = max(bytes, max(chain->layers[i].img->dev->block_bytes,
				       image_data_dev(chain->layers[i].img)->block_bytes));
	return bytes;
}
