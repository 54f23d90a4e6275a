"""Sentences in six languages: made from parts, or of the language's common words."""

import words

# language -> parts of a sentence: who | does what | where | when. Parts are split by ";".
_PARTS = {
    "English": (
        "the woman;my brother;the teacher;our neighbour;a friend of mine;the old man;the children;the doctor",
        "is reading a book;wants to buy some bread;does not like the rain;has lost the keys;would like a cup of "
        "coffee;is looking for a new job;has written a long letter;often plays with the dog;will cook the dinner",
        "at home;in the city;near the station;in the garden;at school;by the sea;in a small village",
        "today;every morning;on Sunday;after work;this week;in the evening;since last year",
        "Where is the nearest station?;How much does this cost?;I do not understand that.;What is your name?;"
        "We would like to eat something.;The weather is very nice today.;Thank you very much for your help.",
    ),
    "German": (
        "die Frau;mein Bruder;der Lehrer;unser Nachbar;ein Freund von mir;der alte Mann;die Kinder;der Arzt",
        "liest ein Buch;will Brot kaufen;mag den Regen nicht;hat die Schlüssel verloren;möchte eine Tasse Kaffee;"
        "sucht eine neue Arbeit;hat einen langen Brief geschrieben;spielt oft mit dem Hund;kocht das Abendessen",
        "zu Hause;in der Stadt;neben dem Bahnhof;im Garten;in der Schule;am Meer;in einem kleinen Dorf",
        "heute;jeden Morgen;am Sonntag;nach der Arbeit;diese Woche;am Abend;seit dem letzten Jahr",
        "Wo ist der nächste Bahnhof?;Wie viel kostet das?;Ich verstehe das nicht.;Wie heißen Sie?;"
        "Wir möchten gerne etwas essen.;Das Wetter ist heute sehr schön.;Vielen Dank für Ihre Hilfe.",
    ),
    "French": (
        "la femme;mon frère;le professeur;notre voisin;un de mes amis;le vieil homme;les enfants;le médecin",
        "lit un livre;veut acheter du pain;n'aime pas la pluie;a perdu les clés;voudrait une tasse de café;"
        "cherche un nouveau travail;a écrit une longue lettre;joue souvent avec le chien;prépare le dîner",
        "à la maison;dans la ville;près de la gare;dans le jardin;à l'école;au bord de la mer;dans un petit village",
        "aujourd'hui;chaque matin;le dimanche;après le travail;cette semaine;le soir;depuis l'année dernière",
        "Où est la gare la plus proche ?;Combien ça coûte ?;Je ne comprends pas cela.;Comment vous appelez-vous ?;"
        "Nous voudrions manger quelque chose.;Il fait très beau aujourd'hui.;Merci beaucoup pour votre aide.",
    ),
    "Spanish": (
        "la mujer;mi hermano;el profesor;nuestro vecino;un amigo mío;el hombre viejo;los niños;el médico",
        "lee un libro;quiere comprar pan;no le gusta la lluvia;ha perdido las llaves;quiere una taza de café;"
        "busca un trabajo nuevo;ha escrito una carta larga;juega a menudo con el perro;prepara la cena",
        "en casa;en la ciudad;cerca de la estación;en el jardín;en la escuela;junto al mar;en un pueblo pequeño",
        "hoy;cada mañana;el domingo;después del trabajo;esta semana;por la noche;desde el año pasado",
        "¿Dónde está la estación más cercana?;¿Cuánto cuesta esto?;No entiendo eso.;¿Cómo se llama usted?;"
        "Queremos comer algo.;Hoy hace muy buen tiempo.;Muchas gracias por su ayuda.",
    ),
    "Italian": (
        "la donna;mio fratello;il professore;il nostro vicino;un mio amico;il vecchio;i bambini;il medico",
        "legge un libro;vuole comprare il pane;non ama la pioggia;ha perso le chiavi;vorrebbe una tazza di caffè;"
        "cerca un nuovo lavoro;ha scritto una lunga lettera;gioca spesso con il cane;prepara la cena",
        "a casa;in città;vicino alla stazione;nel giardino;a scuola;al mare;in un piccolo paese",
        "oggi;ogni mattina;la domenica;dopo il lavoro;questa settimana;la sera;dall'anno scorso",
        "Dov'è la stazione più vicina?;Quanto costa questo?;Non lo capisco.;Come si chiama Lei?;"
        "Vorremmo mangiare qualcosa.;Oggi il tempo è molto bello.;Grazie mille per il Suo aiuto.",
    ),
    "Dutch": (
        "de vrouw;mijn broer;de leraar;onze buurman;een vriend van mij;de oude man;de kinderen;de dokter",
        "leest een boek;wil brood kopen;houdt niet van de regen;heeft de sleutels verloren;wil graag een kop koffie;"
        "zoekt een nieuwe baan;heeft een lange brief geschreven;speelt vaak met de hond;maakt het avondeten klaar",
        "thuis;in de stad;naast het station;in de tuin;op school;aan zee;in een klein dorp",
        "vandaag;elke ochtend;op zondag;na het werk;deze week;in de avond;sinds vorig jaar",
        "Waar is het dichtstbijzijnde station?;Hoeveel kost dit?;Ik begrijp dat niet.;Hoe heet u?;"
        "Wij willen graag iets eten.;Het weer is vandaag heel mooi.;Hartelijk dank voor uw hulp.",
    ),
}

# The little words that hold sentences together; the lists of words.json have few of them.
_LITTLE = {
    "English": "the of and to in is that it was for on are with as his they at be this have from or had by not but what",
    "German": "der die das und ist nicht ein eine zu den mit sich auf für im dem des von ich sie es er wir auch als",
    "French": "le la les des et est que dans qui pour une un pas sur ne se du au par plus ce il elle nous vous avec",
    "Spanish": "el la los las de que y en un una es no se por con para su lo como más pero al del este muy también",
    "Italian": "il lo la gli le di che e è un una in non per con si da come più ma del della sono anche nel questo",
    "Dutch": "de het een en van ik te dat die in je is niet op zijn met voor er maar om hem dan zou wat mijn ook",
}
PARTS = {name: [part.split(";") for part in parts] for name, parts in _PARTS.items()}
LITTLE = {name: text.split() for name, text in _LITTLE.items()}


def _of_parts(source, language):
    who, does, where, when, whole = PARTS[language]
    if source.chance(0.15):
        return source.pick(whole)
    chosen = [source.pick(who), source.pick(does)]
    if source.chance(0.7):
        chosen.append(source.pick(where))
    if source.chance(0.6):
        chosen.append(source.pick(when))
    return " ".join(chosen)


def _of_words(source, language):
    chosen = []
    for _ in range(source.number(4, 11)):
        little = source.chance(0.45)
        chosen.append(
            source.pick(LITTLE[language]) if little else source.pick_new(words.WORDS[language])
        )
    return " ".join(chosen)


def sentence(source):
    """(text, language)."""
    language = source.pick(words.LANGUAGES)
    text = (_of_parts if source.chance(0.4) else _of_words)(source, language)
    if source.chance(0.8):
        text = text[0].upper() + text[1:]
    if text[-1] not in ".?" and source.chance(0.8):
        text += source.pick("..!?")
    return text, language
