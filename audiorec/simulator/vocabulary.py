"""Words the sample catalogue is written with: topics, tones, names and sentence patterns in six languages.

Every noun phrase is singular and carries its article, and every pattern uses it as a subject, so that the
composed sentences stay grammatical in languages with cases and contractions. Nothing here depends on chance;
`audiorec.simulator.text` picks from these lists. Source: written for this project.
"""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES: tuple[str, ...] = ("en", "de", "es", "fr", "pt", "sv")
"""ISO 639-1 codes that the generator can write in."""

COUNTRIES: dict[str, tuple[str, float]] = {
    "US": ("en", 0.27),
    "GB": ("en", 0.12),
    "CA": ("en", 0.05),
    "AU": ("en", 0.04),
    "DE": ("de", 0.12),
    "AT": ("de", 0.03),
    "MX": ("es", 0.08),
    "ES": ("es", 0.07),
    "FR": ("fr", 0.08),
    "BE": ("fr", 0.02),
    "BR": ("pt", 0.08),
    "PT": ("pt", 0.02),
    "SE": ("sv", 0.02),
}
"""ISO 3166-1 code: (main language, share of the users before restriction to the configured languages)."""


@dataclass(frozen=True)
class Topic:
    """One subject that all three domains share, with its label in each of them.

    `bisac`: BISAC-like genre codes of audiobooks; `category`: of podcasts; `music`: genre of tracks.
    """

    name: str
    bisac: tuple[str, str, str]
    category: str
    music: str


TOPICS: tuple[Topic, ...] = (
    Topic("crime", ("FIC022000", "FIC022020", "FIC031000"), "True Crime", "trip hop"),
    Topic("romance", ("FIC027000", "FIC027020", "FIC027050"), "Relationships", "pop"),
    Topic("fantasy", ("FIC009000", "FIC009020", "FIC009060"), "Fiction", "folk metal"),
    Topic("scifi", ("FIC028000", "FIC028010", "FIC028030"), "Science Fiction", "electronic"),
    Topic("horror", ("FIC015000", "FIC012000", "FIC024000"), "Horror", "metal"),
    Topic("history", ("HIS000000", "HIS010000", "HIS027000"), "History", "classical"),
    Topic("business", ("BUS000000", "BUS071000", "BUS050000"), "Business", "house"),
    Topic("mind", ("SEL000000", "SEL027000", "PSY000000"), "Self-Improvement", "ambient"),
    Topic("science", ("SCI000000", "SCI004000", "SCI055000"), "Science", "post-rock"),
    Topic("health", ("HEA000000", "HEA007000", "HEA006000"), "Health & Fitness", "dance"),
    Topic("politics", ("POL000000", "POL040000", "SOC000000"), "News & Politics", "punk"),
    Topic("biography", ("BIO000000", "BIO026000", "BIO005000"), "Personal Journals", "singer-songwriter"),
    Topic("humour", ("HUM000000", "HUM003000", "FIC016000"), "Comedy", "indie"),
    Topic("sport", ("SPO000000", "SPO040000", "SPO035000"), "Sports", "hip hop"),
    Topic("family", ("FAM000000", "FAM034000", "JUV000000"), "Kids & Family", "children's music"),
    Topic("travel", ("TRV000000", "TRV010000", "NAT000000"), "Places & Travel", "world music"),
)

# One line a topic and language: label | six noun phrases | a sentence.
_WORDS = """
crime en: crime story | the detective; the missing witness; the locked room; the last clue; the cold case; the harbour murder | A case that nobody wanted to solve is opened again.
crime de: Krimi | der Kommissar; die verschwundene Zeugin; das verschlossene Zimmer; die letzte Spur; der alte Fall; der Mord am Hafen | Ein Fall, den niemand lösen wollte, wird neu aufgerollt.
crime es: novela policíaca | el detective; la testigo desaparecida; la habitación cerrada; la última pista; el caso olvidado; el crimen del puerto | Se reabre un caso que nadie quería resolver.
crime fr: roman policier | le commissaire; le témoin disparu; la chambre close; le dernier indice; l'affaire oubliée; le meurtre du port | Une enquête que personne ne voulait résoudre est rouverte.
crime pt: romance policial | o detetive; a testemunha desaparecida; o quarto trancado; a última pista; o caso esquecido; o crime do porto | Um caso que ninguém queria resolver é reaberto.
crime sv: deckare | kommissarien; det försvunna vittnet; det låsta rummet; det sista spåret; det kalla fallet; mordet i hamnen | Ett fall som ingen ville lösa öppnas på nytt.
romance en: love story | the summer wedding; the first kiss; the old love letter; the broken heart; the neighbour next door; the second chance | Two people who had given up on love meet again.
romance de: Liebesroman | die Sommerhochzeit; der erste Kuss; der alte Liebesbrief; das gebrochene Herz; der Nachbar von nebenan; die zweite Chance | Zwei Menschen, die nicht mehr an die Liebe glauben, begegnen sich wieder.
romance es: novela romántica | la boda de verano; el primer beso; la vieja carta de amor; el corazón roto; el vecino de al lado; la segunda oportunidad | Dos personas que ya no creían en el amor se reencuentran.
romance fr: roman d'amour | le mariage d'été; le premier baiser; la vieille lettre d'amour; le cœur brisé; le voisin d'à côté; la seconde chance | Deux personnes qui ne croyaient plus à l'amour se retrouvent.
romance pt: romance de amor | o casamento de verão; o primeiro beijo; a velha carta de amor; o coração partido; o vizinho do lado; a segunda chance | Duas pessoas que já não acreditavam no amor voltam a se encontrar.
romance sv: kärleksroman | sommarbröllopet; den första kyssen; det gamla kärleksbrevet; det brustna hjärtat; grannen i huset bredvid; den andra chansen | Två människor som slutat tro på kärleken möts igen.
fantasy en: fantasy | the dragon; the last sorceress; the forgotten kingdom; the enchanted sword; the elven forest; the ancient prophecy | An heir without a throne learns what magic costs.
fantasy de: Fantasy | der Drache; die letzte Zauberin; das vergessene Königreich; das verzauberte Schwert; der Elfenwald; die alte Prophezeiung | Ein Erbe ohne Thron lernt, was Magie kostet.
fantasy es: fantasía | el dragón; la última hechicera; el reino olvidado; la espada encantada; el bosque de los elfos; la antigua profecía | Un heredero sin trono aprende lo que cuesta la magia.
fantasy fr: fantasy | le dragon; la dernière magicienne; le royaume oublié; l'épée enchantée; la forêt des elfes; l'ancienne prophétie | Un héritier sans trône apprend ce que coûte la magie.
fantasy pt: fantasia | o dragão; a última feiticeira; o reino esquecido; a espada encantada; a floresta dos elfos; a antiga profecia | Um herdeiro sem trono descobre o preço da magia.
fantasy sv: fantasy | draken; den sista trollkvinnan; det glömda kungariket; det förtrollade svärdet; alvskogen; den urgamla profetian | En arvinge utan tron lär sig vad magin kostar.
scifi en: science fiction | the starship; the android; the colony on Mars; the time machine; the silent galaxy; the artificial mind | When the signal from deep space arrives, the crew has to choose.
scifi de: Science-Fiction | das Raumschiff; der Androide; die Kolonie auf dem Mars; die Zeitmaschine; die stille Galaxie; die künstliche Intelligenz | Als das Signal aus dem All eintrifft, muss die Besatzung wählen.
scifi es: ciencia ficción | la nave espacial; el androide; la colonia de Marte; la máquina del tiempo; la galaxia silenciosa; la mente artificial | Cuando llega la señal del espacio profundo, la tripulación debe elegir.
scifi fr: science-fiction | le vaisseau spatial; l'androïde; la colonie sur Mars; la machine à remonter le temps; la galaxie silencieuse; l'esprit artificiel | Quand le signal venu de l'espace arrive, l'équipage doit choisir.
scifi pt: ficção científica | a nave espacial; o androide; a colônia em Marte; a máquina do tempo; a galáxia silenciosa; a mente artificial | Quando o sinal do espaço profundo chega, a tripulação precisa escolher.
scifi sv: science fiction | rymdskeppet; androiden; kolonin på Mars; tidsmaskinen; den tysta galaxen; den artificiella intelligensen | När signalen från rymden når fram måste besättningen välja.
horror en: horror | the haunted house; the curse; the thing in the cellar; the graveyard; the whispering ghost; the endless night | Nobody who slept in that house has ever told what they heard.
horror de: Horror | das Spukhaus; der Fluch; das Ding im Keller; der Friedhof; das flüsternde Gespenst; die endlose Nacht | Niemand, der in diesem Haus schlief, hat je erzählt, was er hörte.
horror es: terror | la casa embrujada; la maldición; la criatura del sótano; el cementerio; el fantasma que susurra; la noche sin fin | Nadie que durmió en esa casa contó jamás lo que oyó.
horror fr: horreur | la maison hantée; la malédiction; la chose dans la cave; le cimetière; le fantôme qui murmure; la nuit sans fin | Personne n'a jamais raconté ce qu'on entend la nuit dans cette maison.
horror pt: terror | a casa assombrada; a maldição; a coisa no porão; o cemitério; o fantasma que sussurra; a noite sem fim | Ninguém que dormiu naquela casa contou o que ouviu.
horror sv: skräck | spökhuset; förbannelsen; varelsen i källaren; kyrkogården; den viskande vålnaden; den ändlösa natten | Ingen som sovit i huset har någonsin berättat vad de hörde.
history en: history | the Roman empire; the medieval city; the French revolution; the cold war; the royal court; the forgotten battle | From letters and archives, the past is told by those who lived it.
history de: Geschichte | das römische Reich; die mittelalterliche Stadt; die Französische Revolution; der Kalte Krieg; der Königshof; die vergessene Schlacht | Aus Briefen und Archiven erzählen jene die Vergangenheit, die sie erlebten.
history es: historia | el Imperio romano; la ciudad medieval; la Revolución francesa; la guerra fría; la corte real; la batalla olvidada | A partir de cartas y archivos, el pasado contado por quienes lo vivieron.
history fr: histoire | l'Empire romain; la ville médiévale; la Révolution française; la guerre froide; la cour royale; la bataille oubliée | À partir de lettres et d'archives, le passé raconté par ceux qui l'ont vécu.
history pt: história | o Império Romano; a cidade medieval; a Revolução Francesa; a guerra fria; a corte real; a batalha esquecida | A partir de cartas e arquivos, o passado contado por quem o viveu.
history sv: historia | romarriket; den medeltida staden; franska revolutionen; kalla kriget; kungahovet; det glömda slaget | Ur brev och arkiv berättas det förflutna av dem som levde då.
business en: business | the start-up; the stock market; the good leader; the negotiation; the family budget; the big deal | What successful companies do differently, and what you can copy tomorrow.
business de: Wirtschaft | das Start-up; die Börse; die gute Führungskraft; die Verhandlung; das Haushaltsbudget; das große Geschäft | Was erfolgreiche Unternehmen anders machen und was man davon lernen kann.
business es: negocios | la empresa emergente; la bolsa; el buen líder; la negociación; el presupuesto familiar; el gran negocio | Lo que las empresas de éxito hacen de otra manera y lo que puedes copiar mañana.
business fr: économie | la start-up; la bourse; le bon dirigeant; la négociation; le budget familial; la grande affaire | Ce que les entreprises qui réussissent font autrement, et ce que vous pouvez en retenir.
business pt: negócios | a startup; a bolsa de valores; o bom líder; a negociação; o orçamento familiar; o grande negócio | O que as empresas de sucesso fazem de diferente e o que você pode copiar amanhã.
business sv: ekonomi | uppstartsbolaget; börsen; den goda ledaren; förhandlingen; hushållsbudgeten; den stora affären | Vad framgångsrika företag gör annorlunda, och vad du kan ta efter i morgon.
mind en: self-help | the quiet mind; the new habit; the inner voice; the fear of failure; the art of attention; the daily meditation | Small habits that calm a restless mind and change how you see yourself.
mind de: Selbsthilfe | der ruhige Geist; die neue Gewohnheit; die innere Stimme; die Angst vor dem Scheitern; die Kunst der Achtsamkeit; die tägliche Meditation | Kleine Gewohnheiten, die einen unruhigen Geist beruhigen und den Blick auf sich selbst ändern.
mind es: autoayuda | la mente tranquila; el nuevo hábito; la voz interior; el miedo al fracaso; el arte de la atención; la meditación diaria | Pequeños hábitos que calman una mente inquieta y cambian cómo te ves.
mind fr: développement personnel | l'esprit calme; la nouvelle habitude; la voix intérieure; la peur de l'échec; l'art de l'attention; la méditation quotidienne | De petites habitudes qui apaisent l'esprit et changent le regard sur soi.
mind pt: autoajuda | a mente tranquila; o novo hábito; a voz interior; o medo do fracasso; a arte da atenção; a meditação diária | Pequenos hábitos que acalmam a mente inquieta e mudam a forma como você se vê.
mind sv: självhjälp | det lugna sinnet; den nya vanan; den inre rösten; rädslan att misslyckas; konsten att vara närvarande; den dagliga meditationen | Små vanor som lugnar ett rastlöst sinne och ändrar hur du ser på dig själv.
science en: science | the universe; the human brain; the quantum world; the evolution of life; the black hole; the changing climate | Researchers explain what we know, how we know it, and what is still a riddle.
science de: Wissenschaft | das Universum; das menschliche Gehirn; die Quantenwelt; die Evolution des Lebens; das Schwarze Loch; der Klimawandel | Forschende erklären, was wir wissen, woher wir es wissen und was noch ein Rätsel ist.
science es: ciencia | el universo; el cerebro humano; el mundo cuántico; la evolución de la vida; el agujero negro; el cambio climático | Los investigadores explican qué sabemos, cómo lo sabemos y qué sigue siendo un enigma.
science fr: sciences | l'univers; le cerveau humain; le monde quantique; l'évolution de la vie; le trou noir; le changement climatique | Des chercheurs expliquent ce que l'on sait, comment on le sait et ce qui reste une énigme.
science pt: ciência | o universo; o cérebro humano; o mundo quântico; a evolução da vida; o buraco negro; a mudança climática | Pesquisadores explicam o que sabemos, como sabemos e o que ainda é um enigma.
science sv: vetenskap | universum; den mänskliga hjärnan; kvantvärlden; livets evolution; det svarta hålet; klimatförändringen | Forskare förklarar vad vi vet, hur vi vet det och vad som ännu är en gåta.
health en: health | the morning run; the healthy gut; the perfect sleep; the strong back; the balanced diet; the ageing body | A doctor and a trainer show how to eat, move and sleep better.
health de: Gesundheit | der Morgenlauf; der gesunde Darm; der perfekte Schlaf; der starke Rücken; die ausgewogene Ernährung; der alternde Körper | Eine Ärztin und ein Trainer zeigen, wie man besser isst, sich bewegt und schläft.
health es: salud | la carrera matutina; el intestino sano; el sueño perfecto; la espalda fuerte; la dieta equilibrada; el cuerpo que envejece | Una médica y un entrenador muestran cómo comer, moverse y dormir mejor.
health fr: santé | la course du matin; l'intestin sain; le sommeil parfait; le dos solide; l'alimentation équilibrée; le corps qui vieillit | Une médecin et un entraîneur montrent comment mieux manger, bouger et dormir.
health pt: saúde | a corrida da manhã; o intestino saudável; o sono perfeito; a coluna forte; a dieta equilibrada; o corpo que envelhece | Uma médica e um treinador mostram como comer, se mover e dormir melhor.
health sv: hälsa | morgonlöpningen; den friska magen; den perfekta sömnen; den starka ryggen; den balanserade kosten; den åldrande kroppen | En läkare och en tränare visar hur man äter, rör sig och sover bättre.
politics en: politics | the election; the divided parliament; the free press; the border; the protest march; the constitution | Behind the headlines: who decides, who pays, and who is not asked.
politics de: Politik | die Wahl; das gespaltene Parlament; die freie Presse; die Grenze; der Protestmarsch; die Verfassung | Hinter den Schlagzeilen: wer entscheidet, wer zahlt und wer nicht gefragt wird.
politics es: política | la elección; el parlamento dividido; la prensa libre; la frontera; la marcha de protesta; la constitución | Detrás de los titulares: quién decide, quién paga y a quién no se pregunta.
politics fr: politique | l'élection; le parlement divisé; la presse libre; la frontière; la marche de protestation; la constitution | Derrière les gros titres : qui décide, qui paie et à qui l'on ne demande rien.
politics pt: política | a eleição; o parlamento dividido; a imprensa livre; a fronteira; a marcha de protesto; a constituição | Por trás das manchetes: quem decide, quem paga e quem não é ouvido.
politics sv: politik | valet; det splittrade parlamentet; den fria pressen; gränsen; protestmarschen; grundlagen | Bakom rubrikerna: vem bestämmer, vem betalar och vem blir inte tillfrågad.
biography en: memoir | the painter; the famous singer; the lost childhood; the long way home; the diary; the inventor | A life told without varnish, from a small town to the big stage.
biography de: Biografie | die Malerin; der berühmte Sänger; die verlorene Kindheit; der lange Heimweg; das Tagebuch; die Erfinderin | Ein Leben, ungeschönt erzählt, aus der Kleinstadt auf die große Bühne.
biography es: memorias | la pintora; el cantante famoso; la infancia perdida; el largo camino a casa; el diario; la inventora | Una vida contada sin adornos, del pueblo pequeño al gran escenario.
biography fr: mémoires | la peintre; le chanteur célèbre; l'enfance perdue; le long chemin du retour; le journal intime; l'inventrice | Une vie racontée sans fard, d'une petite ville à la grande scène.
biography pt: memórias | a pintora; o cantor famoso; a infância perdida; o longo caminho de casa; o diário; a inventora | Uma vida contada sem enfeites, da cidade pequena ao grande palco.
biography sv: memoar | målaren; den berömda sångaren; den förlorade barndomen; den långa vägen hem; dagboken; uppfinnaren | Ett liv berättat utan försköning, från småstaden till den stora scenen.
humour en: comedy | the awful boss; the talking cat; the failed diet; the mother-in-law; the stand-up comedian; the school reunion | Everything goes wrong, and it is impossible not to laugh.
humour de: Comedy | der schreckliche Chef; die sprechende Katze; die gescheiterte Diät; die Schwiegermutter; der Komiker; das Klassentreffen | Alles geht schief, und man kann nicht anders als lachen.
humour es: comedia | el jefe terrible; el gato que habla; la dieta fracasada; la suegra; el comediante; la reunión de antiguos alumnos | Todo sale mal y es imposible no reírse.
humour fr: comédie | le chef odieux; le chat qui parle; le régime raté; la belle-mère; l'humoriste; la réunion d'anciens élèves | Tout va de travers et il est impossible de ne pas rire.
humour pt: comédia | o chefe terrível; o gato que fala; a dieta fracassada; a sogra; o comediante; o reencontro da turma | Tudo dá errado e é impossível não rir.
humour sv: komedi | den hemska chefen; den talande katten; den misslyckade dieten; svärmodern; ståuppkomikern; klassåterträffen | Allt går fel, och det är omöjligt att inte skratta.
sport en: sport | the football season; the marathon; the world cup final; the underdog; the goalkeeper; the Olympic dream | Training, defeat and one evening on which everything fell into place.
sport de: Sport | die Fußballsaison; der Marathon; das WM-Finale; der Außenseiter; die Torhüterin; der olympische Traum | Training, Niederlagen und ein Abend, an dem alles zusammenpasste.
sport es: deporte | la temporada de fútbol; el maratón; la final del mundial; el equipo modesto; el portero; el sueño olímpico | Entrenamiento, derrotas y una noche en la que todo encajó.
sport fr: sport | la saison de football; le marathon; la finale de la coupe du monde; l'outsider; le gardien de but; le rêve olympique | De l'entraînement, des défaites et un soir où tout s'est mis en place.
sport pt: esporte | a temporada de futebol; a maratona; a final da copa do mundo; o azarão; o goleiro; o sonho olímpico | Treino, derrotas e uma noite em que tudo deu certo.
sport sv: sport | fotbollssäsongen; maratonloppet; VM-finalen; underdogen; målvakten; den olympiska drömmen | Träning, nederlag och en kväll då allt föll på plats.
family en: family | the bedtime story; the new baby; the brave little bear; the first day of school; the tired parent; the treehouse | For long car rides and short evenings, for little ears and for their parents.
family de: Familie | die Gutenachtgeschichte; das neue Baby; der tapfere kleine Bär; der erste Schultag; das müde Elternpaar; das Baumhaus | Für lange Autofahrten und kurze Abende, für kleine Ohren und ihre Eltern.
family es: familia | el cuento de buenas noches; el nuevo bebé; el osito valiente; el primer día de colegio; la madre cansada; la casa del árbol | Para viajes largos y noches cortas, para oídos pequeños y para sus padres.
family fr: famille | l'histoire du soir; le nouveau bébé; le petit ours courageux; le premier jour d'école; le parent fatigué; la cabane dans l'arbre | Pour les longs trajets et les courtes soirées, pour les petites oreilles et leurs parents.
family pt: família | a história de ninar; o novo bebê; o ursinho valente; o primeiro dia de escola; a mãe cansada; a casa na árvore | Para viagens longas e noites curtas, para ouvidos pequenos e seus pais.
family sv: familj | godnattsagan; den nya bebisen; den modiga lilla björnen; första skoldagen; den trötta föräldern; trädkojan | För långa bilresor och korta kvällar, för små öron och deras föräldrar.
travel en: travel | the mountain hut; the night train; the desert road; the wild river; the lonely island; the ocean crossing | On foot, by train and by boat through landscapes that few have seen.
travel de: Reise | die Berghütte; der Nachtzug; die Wüstenstraße; der wilde Fluss; die einsame Insel; die Ozeanüberquerung | Zu Fuß, mit der Bahn und im Boot durch Landschaften, die nur wenige kennen.
travel es: viajes | el refugio de montaña; el tren nocturno; la carretera del desierto; el río salvaje; la isla solitaria; la travesía del océano | A pie, en tren y en barco por paisajes que pocos han visto.
travel fr: voyage | le refuge de montagne; le train de nuit; la route du désert; la rivière sauvage; l'île solitaire; la traversée de l'océan | À pied, en train et en bateau à travers des paysages que peu connaissent.
travel pt: viagem | o refúgio na montanha; o trem noturno; a estrada do deserto; o rio selvagem; a ilha solitária; a travessia do oceano | A pé, de trem e de barco por paisagens que poucos viram.
travel sv: resor | fjällstugan; nattåget; ökenvägen; den vilda floden; den ensamma ön; färden över havet | Till fots, med tåg och båt genom landskap som få har sett.
"""

TONES: tuple[str, ...] = ("dark", "funny", "tender", "fast", "thoughtful", "practical")
"""How a title feels; listeners like some of these across all topics and domains."""

TONE_SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "Dark, cold and relentless.",
        "Warm-hearted and very funny.",
        "Quiet and tender, close to its people.",
        "Fast, with a twist at every turn.",
        "Slow, clever and thoughtful.",
        "Clear and practical, step by step.",
    ),
    "de": (
        "Düster, kalt und unerbittlich.",
        "Warmherzig und sehr komisch.",
        "Leise und zart, nah an den Menschen.",
        "Rasant, mit Wendungen ohne Ende.",
        "Langsam, klug und nachdenklich.",
        "Klar und praktisch, Schritt für Schritt.",
    ),
    "es": (
        "Oscuro, frío e implacable.",
        "Entrañable y muy divertido.",
        "Sereno y tierno, cerca de su gente.",
        "Trepidante, con un giro en cada esquina.",
        "Pausado, inteligente y reflexivo.",
        "Claro y práctico, paso a paso.",
    ),
    "fr": (
        "Sombre, froid et implacable.",
        "Chaleureux et très drôle.",
        "Calme et tendre, au plus près des gens.",
        "Rapide, avec une surprise à chaque détour.",
        "Lent, intelligent et réfléchi.",
        "Clair et pratique, pas à pas.",
    ),
    "pt": (
        "Sombrio, frio e implacável.",
        "Caloroso e muito engraçado.",
        "Calmo e terno, perto das pessoas.",
        "Veloz, com uma reviravolta a cada curva.",
        "Lento, inteligente e reflexivo.",
        "Claro e prático, passo a passo.",
    ),
    "sv": (
        "Mörkt, kallt och obevekligt.",
        "Varmt och mycket roligt.",
        "Stillsamt och ömsint, nära människorna.",
        "Snabbt, med en vändning i varje hörn.",
        "Långsamt, klokt och eftertänksamt.",
        "Tydligt och praktiskt, steg för steg.",
    ),
}


@dataclass(frozen=True)
class Patterns:
    """Title and sentence patterns of a language; `{a}`, `{b}`, `{c}` are noun phrases, `{label}` a genre."""

    book_titles: tuple[str, ...]
    podcast_titles: tuple[str, ...]
    track_titles: tuple[str, ...]
    book_sentences: tuple[str, ...]
    podcast_sentences: tuple[str, ...]
    episode: str
    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    cities: tuple[str, ...]


PATTERNS: dict[str, Patterns] = {
    "en": Patterns(
        book_titles=("{a}", "{a} and {b}", "{a} in {city}", "{a}: a {label}", "{city}, {a}", "before {a}"),
        podcast_titles=("{a} and {b}", "{a}, every week", "{city} talks: {a}", "the {label} hour"),
        track_titles=("{a}", "{a} in {city}", "{a} (live)", "{a} and {b}"),
        book_sentences=(
            "{a} and {b} change everything for {name}.",
            "When {name} comes back to {city}, {a} is waiting.",
            "How do {a} and {b} belong together?",
            "In {city}, {a} is only the beginning.",
            "{name} believes that {a} explains {b}, and is wrong.",
        ),
        podcast_sentences=(
            "{name} asks what {a} means to people in {city}.",
            "{a} and {b}, explained in half an hour.",
            "New guests, old questions: {a}, {b} and {c}.",
        ),
        episode="A new episode every week.",
        first_names=("Emma", "Oliver", "Grace", "Henry", "Maya", "Jack", "Ruth", "Samuel", "Nora", "Isaac"),
        last_names=(
            "Hughes",
            "Carter",
            "Bennett",
            "Okafor",
            "Walsh",
            "Reid",
            "Patel",
            "Foster",
            "Lane",
            "Moore",
        ),
        cities=("London", "Chicago", "Dublin", "Boston", "Sydney", "Toronto", "Leeds", "Austin"),
    ),
    "de": Patterns(
        book_titles=("{a}", "{a} und {b}", "{a} in {city}", "{a}: {label}", "{city}, {a}", "bevor {a} kommt"),
        podcast_titles=("{a} und {b}", "{a}, jede Woche", "{city} redet: {a}", "Stunde null: {label}"),
        track_titles=("{a}", "{a} in {city}", "{a} (live)", "{a} und {b}"),
        book_sentences=(
            "{a} und {b} ändern alles für {name}.",
            "Als {name} nach {city} zurückkehrt, wartet dort schon {a}.",
            "Wie gehören {a} und {b} zusammen?",
            "In {city} ist {a} nur der Anfang.",
            "{name} fragt sich, ob {a} oder {b} die Antwort ist.",
        ),
        podcast_sentences=(
            "{name} fragt, was {a} den Menschen in {city} bedeutet.",
            "{a} und {b}, erklärt in einer halben Stunde.",
            "Neue Gäste, alte Fragen: {a}, {b} und {c}.",
        ),
        episode="Jede Woche eine neue Folge.",
        first_names=("Anna", "Jonas", "Klara", "Felix", "Greta", "Lukas", "Hanna", "Moritz", "Ida", "Emil"),
        last_names=(
            "Berger",
            "Vogt",
            "Lindner",
            "Krause",
            "Sommer",
            "Yilmaz",
            "Brandt",
            "Keller",
            "Winter",
            "Roth",
        ),
        cities=("Berlin", "Hamburg", "Wien", "Leipzig", "Köln", "Graz", "Bremen", "Dresden"),
    ),
    "es": Patterns(
        book_titles=("{a}", "{a} y {b}", "{a} en {city}", "{a}: {label}", "{city}, {a}", "cuando llega {a}"),
        podcast_titles=("{a} y {b}", "{a}, cada semana", "{city} conversa: {a}", "la hora: {label}"),
        track_titles=("{a}", "{a} en {city}", "{a} (en vivo)", "{a} y {b}"),
        book_sentences=(
            "{a} y {b} lo cambian todo para {name}.",
            "Cuando {name} vuelve a {city}, allí espera {a}.",
            "¿Qué tienen en común {a} y {b}?",
            "En {city}, {a} es solo el comienzo.",
            "{name} se pregunta si la respuesta es {a} o {b}.",
        ),
        podcast_sentences=(
            "{name} pregunta qué significa {a} para la gente de {city}.",
            "{a} y {b}, en media hora.",
            "Nuevos invitados, viejas preguntas: {a}, {b} y {c}.",
        ),
        episode="Un episodio nuevo cada semana.",
        first_names=(
            "Lucía",
            "Mateo",
            "Carmen",
            "Diego",
            "Elena",
            "Pablo",
            "Sofía",
            "Andrés",
            "Inés",
            "Hugo",
        ),
        last_names=(
            "García",
            "Ortega",
            "Vidal",
            "Romero",
            "Castro",
            "Núñez",
            "Salas",
            "Herrera",
            "Molina",
            "Rey",
        ),
        cities=("Madrid", "Sevilla", "Bogotá", "Valencia", "Lima", "Granada", "Oaxaca", "Bilbao"),
    ),
    "fr": Patterns(
        book_titles=("{a}", "{a} et {b}", "{a} à {city}", "{a} : {label}", "{city}, {a}", "quand vient {a}"),
        podcast_titles=("{a} et {b}", "{a}, chaque semaine", "{city} en parle : {a}", "une heure : {label}"),
        track_titles=("{a}", "{a} à {city}", "{a} (en concert)", "{a} et {b}"),
        book_sentences=(
            "{a} et {b} changent tout pour {name}.",
            "Quand {name} revient à {city}, là attend {a}.",
            "Qu'ont en commun {a} et {b} ?",
            "À {city}, {a} n'est que le début.",
            "{name} se demande si la réponse est {a} ou {b}.",
        ),
        podcast_sentences=(
            "{name} demande ce que signifie {a} pour les gens à {city}.",
            "{a} et {b}, en une demi-heure.",
            "De nouveaux invités, de vieilles questions : {a}, {b} et {c}.",
        ),
        episode="Un nouvel épisode chaque semaine.",
        first_names=(
            "Camille",
            "Louis",
            "Manon",
            "Jules",
            "Chloé",
            "Hugo",
            "Alice",
            "Théo",
            "Jeanne",
            "Paul",
        ),
        last_names=(
            "Moreau",
            "Lefèvre",
            "Garnier",
            "Dubois",
            "Mercier",
            "Diallo",
            "Renard",
            "Faure",
            "Blanc",
            "Roy",
        ),
        cities=("Paris", "Lyon", "Nantes", "Marseille", "Bruxelles", "Lille", "Rennes", "Dijon"),
    ),
    "pt": Patterns(
        book_titles=("{a}", "{a} e {b}", "{a} em {city}", "{a}: {label}", "{city}, {a}", "quando chega {a}"),
        podcast_titles=("{a} e {b}", "{a}, toda semana", "{city} conversa: {a}", "uma hora: {label}"),
        track_titles=("{a}", "{a} em {city}", "{a} (ao vivo)", "{a} e {b}"),
        book_sentences=(
            "{a} e {b} mudam tudo para {name}.",
            "Quando {name} volta a {city}, lá espera {a}.",
            "O que têm em comum {a} e {b}?",
            "Em {city}, {a} é só o começo.",
            "{name} se pergunta se a resposta é {a} ou {b}.",
        ),
        podcast_sentences=(
            "{name} pergunta o que significa {a} para as pessoas de {city}.",
            "{a} e {b}, em meia hora.",
            "Novos convidados, velhas perguntas: {a}, {b} e {c}.",
        ),
        episode="Um episódio novo toda semana.",
        first_names=(
            "Ana",
            "João",
            "Beatriz",
            "Rafael",
            "Clara",
            "Tiago",
            "Helena",
            "Bruno",
            "Lívia",
            "Caio",
        ),
        last_names=(
            "Silva",
            "Souza",
            "Almeida",
            "Ferreira",
            "Rocha",
            "Lima",
            "Cardoso",
            "Pinto",
            "Barros",
            "Reis",
        ),
        cities=("Lisboa", "Recife", "Curitiba", "Salvador", "Coimbra", "Belém", "Braga", "Manaus"),
    ),
    "sv": Patterns(
        book_titles=("{a}", "{a} och {b}", "{a} i {city}", "{a}: {label}", "{city}, {a}", "innan {a} kom"),
        podcast_titles=("{a} och {b}", "{a}, varje vecka", "{city} pratar: {a}", "en timme: {label}"),
        track_titles=("{a}", "{a} i {city}", "{a} (live)", "{a} och {b}"),
        book_sentences=(
            "{a} och {b} förändrar allt för {name}.",
            "När {name} återvänder till {city} väntar {a}.",
            "Hur hör {a} och {b} ihop?",
            "I {city} är {a} bara början.",
            "{name} undrar om svaret är {a} eller {b}.",
        ),
        podcast_sentences=(
            "{name} frågar vad {a} betyder för människor i {city}.",
            "{a} och {b}, förklarat på en halvtimme.",
            "Nya gäster, gamla frågor: {a}, {b} och {c}.",
        ),
        episode="Ett nytt avsnitt varje vecka.",
        first_names=("Elsa", "Nils", "Astrid", "Axel", "Maja", "Oskar", "Linnea", "Viktor", "Signe", "Arvid"),
        last_names=("Lund", "Berg", "Ekström", "Holm", "Sandberg", "Nyström", "Dahl", "Falk", "Wallin", "Ek"),
        cities=("Stockholm", "Malmö", "Uppsala", "Göteborg", "Lund", "Kiruna", "Visby", "Umeå"),
    ),
}


@dataclass(frozen=True)
class TopicWords:
    """The words of one topic in one language: genre label, noun phrases with their article, one sentence."""

    label: str
    nouns: tuple[str, ...]
    sentence: str


def _parse() -> dict[tuple[str, str], TopicWords]:
    words: dict[tuple[str, str], TopicWords] = {}
    for line in _WORDS.strip().splitlines():
        key, _, rest = line.partition(": ")
        topic, language = key.split(" ")
        label, nouns, sentence = rest.split(" | ")
        words[topic, language] = TopicWords(label, tuple(nouns.split("; ")), sentence)
    return words


WORDS: dict[tuple[str, str], TopicWords] = _parse()
"""(topic name, language): words; complete for every topic and language (tested)."""
