"""The words of the simulated shop: departments, categories, styles and the sentences made of them.

A noun that ends in `*` is plural, one in `~` takes no article. Style words never name a department and the reverse, so
that a text encoder has to read both to place a product.
"""

from __future__ import annotations

from typing import NamedTuple


class Category(NamedTuple):
    name: str
    nouns: tuple[str, ...]
    price: tuple[float, float]  # lowest and highest list price, EUR
    materials: tuple[str, ...] = ()  # of this category; empty: the department's
    uses: tuple[str, ...] = ()


class Department(NamedTuple):
    name: str
    categories: tuple[Category, ...]
    materials: tuple[str, ...]
    uses: tuple[str, ...]
    size: float  # relative number of products, and of shoppers who like it
    consumable: bool = False  # used up and bought again


class Style(NamedTuple):
    name: str
    words: tuple[str, ...]
    colours: tuple[str, ...]
    sentences: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", ")) if text else ()


def _category(name: str, nouns: str, low: float, high: float, materials: str = "", uses: str = "") -> Category:
    return Category(name, _words(nouns), (low, high), _words(materials), _words(uses))


DEPARTMENTS: tuple[Department, ...] = (
    Department("Living Room", (
        _category("Seating", "armchair, sofa, footstool, rocking chair, bench", 90, 900),
        _category("Tables & Shelves", "side table, coffee table, bookshelf, console table, sideboard", 60, 600),
        _category("Lighting", "floor lamp, table lamp, pendant light, wall light", 30, 260),
        _category("Soft Furnishings", "cushion, throw blanket, rug, curtains*", 15, 180),
    ), _words("oak, walnut, linen, velvet, wool, rattan, brass, marble"),
        _words("reading in the evening, long talks with friends, a corner that needs warmth, small flats, "
               "family film nights"),
        1.3),
    Department("Kitchen", (
        _category("Cookware", "saucepan, frying pan, casserole dish, wok, stock pot", 25, 190),
        _category("Tableware", "dinner plates*, mug, cereal bowl, serving platter, wine glasses*", 8, 90),
        _category("Knives & Boards", "chef's knife, bread knife, chopping board, carving set", 15, 160,
                  "stainless steel, beech wood, Damascus steel, bamboo",
                  "Sunday roasts, chopping herbs, the keen home cook, cooking for a crowd"),
        _category("Small Appliances", "espresso machine, kettle, toaster, hand blender", 35, 420,
                  "stainless steel, enamelled steel, glass, copper",
                  "the first coffee of the day, a quick breakfast, soups and smoothies, a busy family kitchen"),
    ), _words("cast iron, stainless steel, stoneware, bamboo, copper, porcelain, glass, beech wood"),
        _words("Sunday roasts, quick weekday dinners, baking with children, the first coffee of the day, "
               "cooking for a crowd"),
        1.2),
    Department("Bed & Bath", (
        _category("Bedding", "duvet cover, fitted sheet, pillowcases*, quilt", 20, 220),
        _category("Towels", "bath towel, hand towels*, beach towel, bathrobe", 10, 110),
        _category("Bathroom Accessories", "soap dispenser, laundry basket, shower curtain, bath mat", 9, 80),
    ), _words("cotton percale, washed linen, bamboo fibre, terry cloth, silk, organic cotton"),
        _words("deep sleep, slow mornings, a spa evening at home, guests who stay the night, a hot bath after work"), 0.9),
    Department("Garden", (
        _category("Planting", "plant pot, raised bed, hanging basket, seed tray", 6, 120,
                  "terracotta, zinc, larch wood, recycled plastic",
                  "growing tomatoes on a balcony, herbs by the kitchen door, spring planting, city terraces"),
        _category("Garden Tools", "pruning shears*, hand trowel, watering can, garden fork", 9, 95,
                  "galvanised steel, ash wood, stainless steel",
                  "a tidy flower border, pruning roses, spring planting, the allotment"),
        _category("Outdoor Living", "sun lounger, garden table, lantern, fire pit, parasol", 30, 480),
    ), _words("terracotta, galvanised steel, teak, ash wood, powder-coated iron, recycled plastic"),
        _words("growing tomatoes on a balcony, summer evenings outside, a tidy flower border, spring planting, "
               "city terraces"), 0.9),
    Department("Women's Clothing", (
        _category("Dresses & Skirts", "midi dress, wrap dress, pleated skirt, shirt dress", 35, 210),
        _category("Tops & Knitwear", "blouse, cardigan, roll-neck sweater, t-shirt", 18, 140),
        _category("Coats & Trousers", "trench coat, wide-leg trousers*, blazer, jeans*", 45, 320),
    ), _words("merino wool, viscose, cotton poplin, denim, cashmere, crepe, lyocell"),
        _words("the office, a summer wedding, weekend city walks, layering in autumn, travelling light"), 1.3),
    Department("Men's Clothing", (
        _category("Shirts", "oxford shirt, flannel shirt, polo shirt, henley", 25, 130),
        _category("Jackets & Knitwear", "bomber jacket, overshirt, crew-neck jumper, parka", 45, 340),
        _category("Trousers", "chinos*, corduroy trousers*, joggers*, shorts*", 30, 140),
    ), _words("brushed cotton, lambswool, twill, corduroy, waxed canvas, jersey"),
        _words("casual Fridays, a weekend in the country, cold commutes, dinner out, everyday wear"), 1.1),
    Department("Shoes & Bags", (
        _category("Shoes", "ankle boots*, loafers*, trainers*, sandals*, brogues*", 45, 260),
        _category("Bags", "tote bag, satchel, messenger bag, weekender, clutch", 30, 290),
        _category("Small Leather Goods", "wallet, belt, card holder, key fob", 15, 95),
    ), _words("full-grain leather, suede, canvas, vegetable-tanned leather, nubuck, recycled nylon"),
        _words("walking to work, short trips, evenings out, carrying a laptop, every season"), 1.0),
    Department("Camping & Hiking", (
        _category("Tents & Sleeping", "tent, sleeping bag, sleeping mat, hammock", 45, 480,
                  "ripstop nylon, goose down, canvas, fleece",
                  "nights above the tree line, family campsites, bivouacs, long-distance walks"),
        _category("Packs & Gear", "rucksack, head torch, trekking poles*, dry bag", 18, 230,
                  "ripstop nylon, aluminium, recycled polyester",
                  "wet autumn trails, long-distance walks, canoe trips, alpine huts"),
        _category("Camp Kitchen", "camping stove, vacuum flask, enamel mug, cool box", 9, 140,
                  "aluminium, titanium, stainless steel",
                  "family campsites, hot soup on the summit, van trips, fishing at dawn"),
    ), _words("ripstop nylon, aluminium, goose down, canvas, titanium, fleece"),
        _words("nights above the tree line, family campsites, wet autumn trails, long-distance walks, canoe trips"), 0.9),
    Department("Sports & Fitness", (
        _category("Training", "yoga mat, kettlebell, resistance bands*, skipping rope, foam roller", 10, 130,
                  "natural rubber, neoprene, cast iron, silicone",
                  "early training sessions, home workouts, stretching, recovery days"),
        _category("Cycling", "cycling helmet, bike lights*, saddle bag, cycling jersey", 18, 190,
                  "carbon, mesh, recycled polyester",
                  "the daily bike commute, long gravel rides, weekend tours, riding at night"),
        _category("Running", "running jacket, running tights*, sports watch, water bottle", 15, 280,
                  "mesh, silicone, recycled polyester",
                  "interval runs, marathon training, trail running, jogging before work"),
    ), _words("natural rubber, neoprene, carbon, mesh, silicone, recycled polyester"),
        _words("early training sessions, home workouts, interval runs, the daily bike commute, recovery days"), 1.0),
    Department("Toys & Games", (
        _category("Wooden Toys", "building blocks*, train set, stacking rings*, pull-along duck", 12, 90,
                  "beech, maple, birch, lime wood",
                  "first steps, learning to count, nursery schools, birthday presents"),
        _category("Board Games", "strategy board game, card game, jigsaw puzzle, domino set", 10, 75,
                  "recycled cardboard, linen-finish card, beech",
                  "rainy afternoons, four players and more, family game nights, long train rides"),
        _category("Soft Toys & Dolls", "teddy bear, rag doll, hand puppet, plush rabbit", 12, 60,
                  "felt, plush, cotton, lambswool",
                  "birthday presents, bedtime stories, newborns, puppet shows"),
    ), _words("beech, felt, plush, recycled cardboard, maple, cotton"),
        _words("rainy afternoons, birthday presents, four players and more, first steps, learning to count"), 0.9),
    Department("Audio & Gadgets", (
        _category("Headphones", "over-ear headphones*, wireless earbuds*, gaming headset", 35, 380,
                  "anodised aluminium, matte plastic, memory foam",
                  "commuting, late-night gaming, concentrated work, long flights"),
        _category("Speakers", "bluetooth speaker, soundbar, turntable, radio", 40, 450,
                  "walnut veneer, woven fabric, brushed steel",
                  "vinyl evenings, kitchen parties, film nights, the morning news"),
        _category("Desk Gadgets", "mechanical keyboard, wireless charger, webcam, desk clock, power bank", 20, 210,
                  "anodised aluminium, glass, matte plastic",
                  "working from home, video calls, a tidy desk, business trips"),
    ), _words("anodised aluminium, walnut veneer, matte plastic, woven fabric, glass, brushed steel"),
        _words("working from home, commuting, vinyl evenings, video calls, late-night gaming"), 1.0),
    Department("Books & Stationery", (
        _category("Notebooks & Paper", "notebook, sketchbook, letter set, weekly planner", 6, 45,
                  "cloth-bound paper, recycled paper, leather, cotton paper",
                  "travel journals, morning pages, lectures and meetings, urban sketching"),
        _category("Pens & Art", "fountain pen, watercolour set, brush pens*, pencil case", 7, 120,
                  "brass, cedar, leather, resin",
                  "urban sketching, hand lettering, signing letters, art class"),
        _category("Books", "cookery book, travel atlas, crime novel, poetry collection, art monograph", 9, 65,
                  "cloth-bound paper, recycled paper, cotton paper",
                  "a gift for a reader, rainy Sundays, the bedside table, long train rides"),
    ), _words("cloth-bound paper, recycled paper, leather, cotton paper, brass, cedar"),
        _words("travel journals, morning pages, lectures and meetings, a gift for a reader, urban sketching"), 0.9),
    Department("Beauty & Care", (
        _category("Skin Care", "face cream, cleansing gel, facial serum, hand balm", 8, 75,
                  "shea butter, aloe vera, rose water, green clay",
                  "dry winter skin, a five-minute routine, sensitive skin, pampering weekends"),
        _category("Hair & Body", "shampoo~, body lotion, conditioner~, soap bar", 5, 38,
                  "argan oil, sea salt, aloe vera, oat milk",
                  "the gym bag, dry hair, daily showers, family bathrooms"),
        _category("Fragrance & Make-up", "eau de parfum, lipstick, mascara, scented body oil", 12, 110,
                  "jasmine, sandalwood, rose water, argan oil",
                  "evenings out, a discreet daily look, a present, festive occasions"),
    ), _words("shea butter, aloe vera, rose water, argan oil, sea salt, green clay"),
        _words("dry winter skin, a five-minute routine, sensitive skin, the gym bag, pampering weekends"), 1.1, True),
    Department("Pantry", (
        _category("Coffee & Tea", "espresso beans*, loose-leaf tea~, filter coffee~, herbal infusion, matcha~", 6, 42,
                  "single-origin leaves, wild herbs, slow roasting, organic harvests",
                  "a slow breakfast, an afternoon break, the office kitchen, late evenings"),
        _category("Oils & Spices", "olive oil~, spice blend, sea salt flakes*, balsamic vinegar~", 5, 34,
                  "smoked paprika, citrus peel, wild herbs, roasted garlic",
                  "cooking from scratch, salads and marinades, barbecues, a gift for the host"),
        _category("Sweets & Snacks", "dark chocolate~, roasted almonds*, oat biscuits*, honey~, granola~", 4, 28,
                  "cocoa, toasted hazelnut, vanilla, dried cherries",
                  "an afternoon break, picnic baskets, a gift for the host, hungry hikers"),
    ), _words("single-origin arabica, wild herbs, cocoa, citrus peel, toasted hazelnut, smoked paprika"),
        _words("a slow breakfast, cooking from scratch, an afternoon break, picnic baskets, a gift for the host"),
        1.1, True),
    Department("Pet Supplies", (
        _category("Dog", "dry dog food~, dog treats*, dog shampoo~, chew sticks*", 6, 70,
                  "salmon, free-range chicken, pumpkin, oats",
                  "adult dogs with sensitive stomachs, lively puppies, older dogs, training sessions"),
        _category("Cat", "cat food~, cat litter~, catnip toys*, cat treats*", 5, 48,
                  "salmon, free-range chicken, plant fibre, catnip",
                  "indoor cats, kittens, fussy eaters, older cats"),
        _category("Small Animals", "guinea pig hay~, bird seed~, rabbit pellets*, fish flakes*", 4, 26,
                  "timothy hay, oats, sunflower seeds, algae",
                  "daily feeding, young animals, garden birds, winter months"),
    ), _words("salmon, free-range chicken, timothy hay, oats, pumpkin, wood fibre"),
        _words("adult dogs with sensitive stomachs, indoor cats, lively puppies, older animals, daily feeding"), 0.8, True),
)

STYLES: tuple[Style, ...] = (
    Style("rustic", _words("rustic, farmhouse, weathered, countryside, homespun"),
          _words("moss green, oatmeal, clay, bark brown"),
          ("It has the honest charm of an old farmhouse.", "Rough edges and visible grain are part of the character.",
           "Made in small batches, the way it was done in the village.",
           "A rustic note that feels like a weekend in the country.")),
    Style("minimalist", _words("minimalist, pared-back, understated, clean-lined, uncluttered"),
          _words("white, stone grey, sand, soft black"),
          ("Nothing is there that need not be: clean lines and calm surfaces.",
           "Inspired by Scandinavian restraint and Japanese simplicity.",
           "Quiet, pared-back and free of ornament.", "Minimalist down to the packaging.")),
    Style("vintage", _words("vintage, retro, mid-century, nostalgic, antique-inspired"),
          _words("mustard, bottle green, sepia, faded rose"),
          ("It looks like a lucky find from a flea market.",
           "A nod to the fifties and sixties, with their curves and warm tones.",
           "Retro lettering and a nostalgic finish recall your grandparents' time.", "Timeless vintage charm, newly made.")),
    Style("industrial", _words("industrial, workshop, utilitarian, raw-edged, factory-style"),
          _words("gunmetal, concrete grey, rust, matte black"),
          ("Bare, sturdy and unpolished, as if it came from an old factory loft.",
           "Built like a workshop tool: exposed rivets, no frills.",
           "A raw, utilitarian look for people who like to see how things are made.",
           "Tough industrial character with a dark patina.")),
    Style("playful", _words("playful, cheerful, quirky, whimsical, fun"),
          _words("bubblegum pink, sunny yellow, sky blue, candy stripe"),
          ("Bright, funny and a little bit silly, it makes everybody smile.",
           "Bold patterns and happy colours chase a grey day away.",
           "A quirky companion with a sense of humour.", "Whimsical details hide where you least expect them.")),
    Style("elegant", _words("elegant, refined, luxurious, sophisticated, polished"),
          _words("champagne, ivory, midnight blue, burgundy"),
          ("Refined in every detail and finished by hand, for those who enjoy the best.", "A touch of grand-hotel luxury.",
           "Understood by connoisseurs: a polished surface and a graceful silhouette.",
           "Sophisticated enough for the most festive evening.")),
    Style("bohemian", _words("bohemian, boho, free-spirited, folk-inspired, hand-crafted"),
          _words("saffron, indigo, terracotta red, turquoise"),
          ("Ethnic patterns, fringes and rich colours tell of faraway markets.",
           "For free spirits who mix and layer as they please.",
           "Each one is a little different, like a souvenir from a long journey.", "Boho warmth with folk ornaments.")),
    Style("technical", _words("technical, high-performance, pro-grade, aerodynamic, advanced"),
          _words("neon lime, graphite, electric blue, signal orange"),
          ("Engineered in the laboratory and tested to its limits.", "Every gram was weighed and every function measured.",
           "Precise, fast and dependable: performance comes first.", "Advanced technology that professionals rely on.")),
)

BRAND_FIRST = _words(
    "Alder, Bryn, Calder, Dovecote, Elmhurst, Fenwick, Garnet, Hollis, Inver, Juniper, Kestrel, Larkin, Marlow, Northam, "
    "Orchard, Penrose, Quill, Rowan, Saffron, Tamsin, Umber, Verity, Willow, Yarrow, Zephyr")
BRAND_LAST = _words("& Sons, Works, Studio, House, Lane, Collective, & Finch, Supply")

DETAILS = (
    "Comes in a gift box.", "Made to last for years.", "Designed in our own studio.", "A favourite of our customers.",
    "Part of a series that grows every season.", "Packed without plastic.", "Tested by our team for a month.",
    "Now in its second edition.", "Sourced from a family business.", "Delivered ready to use.",
)

PRAISE = (
    "Exactly what I was looking for, the {style} look is spot on.", "Lovely {noun}, {material} feels great.",
    "Bought it for {use} and could not be happier.", "Second one I own, still in love with it.",
    "The {noun} arrived quickly and looks even better than in the pictures.",
)
BLAME = (
    "Not for me, too {style} for my taste.", "The {noun} was smaller than I expected.",
    "Fine, but overpriced for what it is.",
    "Colour differs from the picture, sending it back.", "Looked better on the website, a bit disappointed.",
)
