// SPDX-License-Identifier: GPL-2.0-or-later
/* Draws images and what stands on what, as `git log --graph` draws commits. */
#include "tree-draw.h"

#include "served.h"

#include <string.h>

/* The column of states is at least so wide. */
#define MIN_STATE 7

static const char *size_text(json_object *layer, const char *key, char *text)
{
	s64 size = json_number(layer, key, -1);

	return size >= 0 ? print_size(size, text) : "-";
}

/* What is drawn before an image: one "| " for each line that passes by. */
static int rails(u32 level)
{
	for (u32 i = 0; i < level; i++)
		printf("| ");
	return 2 * level;
}

void tree_draw_image(json_object *image, u32 level, const struct tree_columns *columns)
{
	bool active = json_number(image, "depth", -1) == 0;
	const char *name = json_text(image, "node-name"), *file = json_text(image, "file");
	const char *snapshot = json_text(image, "snapshot");
	char virtual_size[32], actual_size[32];
	int used = rails(level);

	printf("%s%s  %-*s  %-*s  %-*s  %9s  %9s  %s%s%s\n",
	       print_colour(stdout, active ? COLOUR_GOOD : COLOUR_NONE), active ? "*" : "o",
	       columns->name - used, name ? name : "-",
	       columns->snapshot, snapshot ? snapshot : "-",
	       columns->state, json_text(image, "state"),
	       size_text(image, "virtual-size", virtual_size),
	       size_text(image, "actual-size", actual_size), print_colour(stdout, COLOUR_FAINT),
	       file ? file : "", print_colour(stdout, COLOUR_NONE));
}

void tree_draw_forks(json_object *image, u32 from, u32 level, const struct tree_columns *columns)
{
	u32 nr;
	json_object *branches = json_list(image, "branches", &nr);

	for (u32 i = from; i < nr; i++) {
		tree_draw_branch(json_object_array_get_idx(branches, i), level + 1, columns);
		rails(level);
		printf("|/\n");
	}
}

void tree_draw_branch(json_object *image, u32 level, const struct tree_columns *columns)
{
	u32 nr;
	json_object *branches = json_list(image, "branches", &nr);

	if (nr) {
		tree_draw_branch(json_object_array_get_idx(branches, 0), level, columns);
		rails(level);
		printf("|\n");
		tree_draw_forks(image, 1, level, columns);
	}
	tree_draw_image(image, level, columns);
}

static int width_of(json_object *image, const char *key)
{
	const char *text = json_text(image, key);

	return text ? strlen(text) : 1;
}

void tree_measure(json_object *image, u32 level, struct tree_columns *columns)
{
	bool layer = json_number(image, "depth", -1) >= 0;
	u32 nr;
	json_object *branches = json_list(image, "branches", &nr);

	columns->name = max(columns->name, (int)(2 * level) + width_of(image, "node-name"));
	columns->snapshot = max(columns->snapshot, width_of(image, "snapshot"));
	columns->state = max(columns->state, max(MIN_STATE, width_of(image, "state")));
	for (u32 i = 0; i < nr; i++)
		tree_measure(json_object_array_get_idx(branches, i),
			      layer || i ? level + 1 : level, columns);
}

